"""What does a step of drawing ask of the computer, beside a step of the stock pipeline? Operators and processor time, in one run.

    python benchmarks/operators.py [--rounds 9] [--quick] [--json]

With one or two rows, a GPU waits for the computer that launches its operators, so their number and the time that launching them
takes decide how fast pictures are drawn. The networks here are as deep as the models they are named after and a few numbers
wide, so that arithmetic takes next to nothing. Their weights are random, in bfloat16. Both sides draw from the same encodings.

*Operators* are all that torch dispatches, views included; their number is the same in every run. It is that of a step: of a long
drawing less a short one, by the steps between, which leaves out what is done once. *Time* is that of the processor for a whole
drawing, both by turns; the ratio is taken within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from gpu_efface import drawings
from gpu_models import BF16, SD3, SIZES, UNETS
from torch.utils._python_dispatch import TorchDispatchMode

from efface.models.sd import StableDiffusion

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
DEPTH: Mapping[str, Mapping[str, Any]] = {
    "sd15": {
        "down_block_types": (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP),
        "block_out_channels": (32,) * 4,
        "layers_per_block": 2,
    },
    "sdxl": {
        **{k: UNETS["sdxl"][k] for k in ("down_block_types", "up_block_types", "transformer_layers_per_block")},
        "block_out_channels": (32,) * 3,
        "layers_per_block": 2,
    },
    "sd35-medium": {k: SD3[k] for k in ("num_layers", "dual_attention_layers", "qk_norm")},
    "flux": {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
}
"""What makes a tiny network as deep as that of a model; its layers stay as narrow as they are."""


class Counted(TorchDispatchMode):
    """Counts operators inside."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += 1
        return func(*args, **(kwargs or {}))


def per_step(draw: Callable[[int], Any], short: int = 3, long: int = 7) -> float:
    """Operators of one step of ``draw``, which is given the number of steps."""
    draw(short)  # what is kept from the first call on is there
    found = []
    for n in (short, long):
        with Counted() as counted:
            draw(n)
        found.append(counted.n)
    return (found[1] - found[0]) / (long - short)


def deep(name: str, quick: bool) -> StableDiffusion:
    """The tiny model of the family, with a network of that depth unless ``quick``."""
    small = SIZES[name].small(dtype="bfloat16")
    if quick:
        return small
    network: Any = getattr(small, small.part)
    config = {k: v for k, v in network.config.items() if not k.startswith("_")}
    torch.manual_seed(0)
    made = type(network)(**{**config, **DEPTH[name]}).eval().requires_grad_(False)
    setattr(small, small.part, made.to(BF16))
    return small


def measured(model: StableDiffusion, rounds: int, steps: int) -> list[dict[str, Any]]:
    """One row for every solver, with one picture."""
    rows = []
    for what, by, n in drawings(model, 1, steps, steps):
        counts = {who: per_step(draw) for who, draw in by.items()}
        taken: dict[str, list[float]] = {who: [] for who in by}
        for i in range(rounds):
            for who, draw in list(by.items())[:: 1 if i % 2 else -1]:
                start = time.process_time()
                draw(n)
                taken[who].append(1000 * (time.process_time() - start) / n)
        ratios = [ours / theirs for ours, theirs in zip(taken["efface"], taken["stock pipeline"], strict=True)]
        rows.append(
            {
                "solver": what,
                "operators": counts["efface"],
                "stock_operators": counts["stock pipeline"],
                "ms": statistics.median(taken["efface"]),
                "stock_ms": statistics.median(taken["stock pipeline"]),
                "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="Networks of two layers, two rounds of three steps.")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rounds, steps = (2, 3) if args.quick else (args.rounds, 20)
    torch.set_num_threads(1)  # how many threads share the little arithmetic is not the question
    with torch.no_grad():
        found = {name: measured(deep(name, args.quick), rounds, steps) for name in DEPTH}
    if args.json:
        print(json.dumps(found))
        return
    print("| one picture, bfloat16 | operators a step | stock pipeline | ms a step | stock pipeline | ratio of times (range) |")
    print("|---|---|---|---|---|---|")
    for name, rows in found.items():
        for r in rows:
            print(
                f"| {name}, {r['solver']} | {r['operators']:,.0f} | {r['stock_operators']:,.0f} | {r['ms']:.1f} | "
                f"{r['stock_ms']:.1f} | {r['ratio']:.2f} ({r['ratio_range'][0]:.2f} to {r['ratio_range'][1]:.2f}) |"
            )


if __name__ == "__main__":
    main()
