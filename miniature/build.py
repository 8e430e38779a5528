"""``python -m miniature.build STAGE [--work DIR]``: builds the bundled miniature, one resumable stage at a time."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from efface.models.mini.world import load_world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "stage", choices=["render", "tokenizer", "vae", "clip", "latents", "unet", "detectors", "pack", "unpack", "suite", "card"]
    )
    parser.add_argument("--work", type=Path, default=Path("runs/miniature"))
    parser.add_argument("--minutes", type=float, help="wall-clock limit of a training stage")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", help="clip: init | score; unet: base0 | base1; detectors: report | selection")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    world = load_world()
    if args.stage == "render":
        from .render import render_world

        np.savez_compressed(args.work / "renders.npz", renders=render_world(world, args.work / "icons"))
    elif args.stage == "tokenizer":
        from .train_tokenizer import train

        train(world, args.work)
    elif args.stage == "vae":
        from .train_vae import train

        train(world, args.work, args.minutes or 10)
    elif args.stage == "clip":
        from .train_clip import train

        train(world, args.work, args.part or "score", args.minutes or 8)
    elif args.stage == "latents":
        from .train_unet import encode_latents

        encode_latents(world, args.work)
    elif args.stage == "unet":
        from .train_unet import train

        train(world, args.work, args.part or "base0", args.minutes or 60)
    elif args.stage == "detectors":
        from .train_detectors import train

        train(world, args.work, args.part or "report", args.minutes or 8)
    elif args.stage == "pack":
        from .pack import pack

        pack(world, args.work)
    elif args.stage == "unpack":
        from .unpack import unpack

        unpack(world, args.work)
    elif args.stage == "suite":
        from .suite import write_similar

        write_similar(world, args.work)
    elif args.stage == "card":
        from .card import write_card

        write_card(world, args.work)


if __name__ == "__main__":
    main()
