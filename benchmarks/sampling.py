"""Is drawing with efface slower than with the stock pipeline? Same weights, prompts, start noise and steps, in turn, in one run.

    python benchmarks/sampling.py [--model mini] [--device cpu] [--rounds 7] [--batch 8] [--steps 20] [--json]

``--model`` is whatever efface loads and diffusers can save as a folder of Stable Diffusion. Each round times both, in an order
that alternates; the ratio is taken within a round. The pictures are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from efface.concepts.prompts import Case
from efface.models.load import load_model

PROMPTS = ("a cat", "a house", "a bus", "a rose")


def stock_of(model: Any, device: str) -> Any:
    """The stock pipeline of the model's folder, as diffusers itself loads it, with DDIM."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_folder(Path(folder))
        pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def timed(draw: Any, device: str) -> tuple[float, torch.Tensor]:
    start = time.perf_counter()
    images = draw()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start, images


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="Two rounds of one picture.")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    rounds, batch, steps = (2, 1, 2) if args.quick else (args.rounds, args.batch, args.steps)
    model = load_model(args.model, device=args.device)
    stock, scale = stock_of(model, args.device), 4.0
    cases = [Case("free", "", PROMPTS[i % len(PROMPTS)], i, scale) for i in range(batch)]
    noise = model.case_noise([case.seed for case in cases])

    def ours() -> torch.Tensor:
        return model.sample(cases, steps, batch)

    def theirs() -> torch.Tensor:
        call = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "pt", "latents": noise.clone()}
        images: torch.Tensor = stock([case.prompt for case in cases], **call).images
        return images

    ours(), theirs()  # neither pays for the first call
    pairs = []
    for i in range(rounds):
        found = {draw: timed(draw, args.device) for draw in ((ours, theirs) if i % 2 else (theirs, ours))}
        pairs.append((found[ours][0], found[theirs][0]))
        off = float((found[ours][1].cpu() - found[theirs][1].cpu()).abs().max())
    ratios = [mine / other for mine, other in pairs]
    result = {
        "model": args.model,
        "pictures": batch,
        "steps": steps,
        "ours_s": statistics.median(mine for mine, _ in pairs),
        "stock_s": statistics.median(other for _, other in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "largest_difference": off,
    }
    print(json.dumps(result) if args.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
