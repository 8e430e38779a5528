"""Stage ``flow``: the flow miniature, first without the reserved concepts (base0, the gold model), then continued with them.

    python -m miniature.train_flow --work DIR --out DIR --seconds 75 --device cuda

One command for a machine without a network: it needs ``DIR/renders.npz`` of stage ``render`` and the packaged miniature. It
composes and encodes the pictures, trains both networks one after the other for the given seconds each, judges both with the
miniature's detectors by the protocol of its card and writes ``mini-flow-gold.safetensors``, ``mini-flow.safetensors``, one
contact sheet each and ``flow.json``. Captions, cells and seeds are those of stage ``unet``; :mod:`miniature.flow` says what the
network is given.

Rectified flow: s = sigmoid(N(0, 1)) for each row, z = (1 - s) x0 + s n, loss = mean (v - (n - x0))^2 without a further weight, as
the density of s is the weight (Esser et al. 2024, arXiv:2403.03206). The learning rate follows the wall clock and reaches zero at
its end, so two runs on one machine draw the same numbers but do not take the same number of steps.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efface.io.files import write_text
from efface.models.mini.world import load_world

from . import networks
from .data import renders_tensor
from .flow import FILES, Frozen, load_network, save_network, twice
from .train_unet import AUGMENTATIONS, latent_table
from .trainer import PARTS, Trainer, tables, train

BATCH = 512


def start_at_zero(network: nn.Module) -> None:
    """Zero what modulates and what reads out, so that every block starts as the identity and the output as zero (adaLN-zero,
    Peebles and Xie 2023, arXiv:2212.09748). diffusers leaves these layers at the default of ``Linear``."""
    layers = [network.norm_out.linear, network.proj_out]
    layers += [norm.linear for block in network.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


class FlowTrainer(Trainer):
    """Predicts the velocity n - x0 at z = (1 - s) x0 + s n."""

    def draw_levels(self) -> None:
        self.s.normal_(generator=self.rng).sigmoid_()

    def error(self, s: Tensor, text: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            v = self.network(
                hidden_states=(1 - s) * self.x0 + s * self.noise,
                encoder_hidden_states=twice(self.data.hidden[text].float()),
                pooled_projections=twice(self.data.pooled[text].float()),
                timestep=1000 * self.s,
                return_dict=False,
            )[0]
        return (v.float() - (self.noise - self.x0)).square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and judge the flow miniature.")
    parser.add_argument("--work", type=Path, default=Path("runs/miniature"), help="holds renders.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/miniature/flow"))
    parser.add_argument(
        "--part", choices=["base0", "base1", "both"], default="both", help="base1 continues base0's file in --out"
    )
    parser.add_argument("--seconds", type=float, default=75, help="of training, for each network")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--augmentations", type=int, default=AUGMENTATIONS, help="latents of each picture; few for a quick try")
    parser.add_argument("--every", type=int, default=1, help="judge every K-th concept and background picture; 1 for the bars")
    parser.add_argument("--compile", action="store_true", help="the transformer's blocks; costs time before the clock starts")
    parser.add_argument("--threads", type=int, help="of the CPU")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    from .judge_flow import bars, judge_network

    begun = time.time()
    world, device = load_world(), torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in vars(args).items() if k not in ("work", "out")}
    results: dict[str, Any] = {"settings": settings, "training": {}, "judged": {}}

    def note(what: str) -> None:
        results["seconds"] = round(time.time() - begun, 1)
        write_text(args.out / "flow.json", json.dumps(results, indent=1) + "\n")
        print(f"flow: {what} ({time.time() - begun:.0f} s)", flush=True)

    frozen = Frozen.load(device)
    renders = renders_tensor(args.work / "renders.npz").to(device)
    data = tables(world, *latent_table(world, renders, frozen.vae, args.augmentations), frozen)
    note(f"{len(data.latents)} latents, {len(data.hidden)} captions on {device}")
    parts = ["base0", "base1"] if args.part == "both" else [args.part]
    for part in parts:
        torch.manual_seed(PARTS[part].seed)
        if part == "base0":
            network = networks.mmdit()
            start_at_zero(network)
        else:
            network, _ = load_network(args.out / FILES["base0"])
        path = args.out / FILES[part]
        trainer = FlowTrainer(network.to(device).train().requires_grad_(True), data, PARTS[part], args.batch)
        save = lambda state, facts, path=path: save_network(state, path, facts)  # noqa: E731
        results["training"][part] = train(trainer, args.seconds, save, args.compile)
        note(f"{path.name} written")
    for part in parts:
        path = args.out / FILES[part]
        results["judged"][part] = judge_network(
            world, load_network(path)[0].to(device), frozen, path.with_suffix(".png"), args.every
        )
        note(f"{path.stem} judged")
    results["bars"] = bars(results["judged"])
    note("done")
    for name, row in results["bars"].items():
        print(f"{name}: {row['rate']['k']}/{row['rate']['n']}, {row['verdict']}")


if __name__ == "__main__":
    main()
