"""``python -m worlds.icons.build STAGE [--work DIR]``: builds the world of icons, one resumable stage at a time.

``all`` runs every stage from the renders on. ``first`` and ``second`` are two sittings that need no network: all but the renders
and the gold models from scratch, and these. ``--seconds`` is then the time of all trainings together. With ``--smoke`` the world
is a small part of itself and the networks are tiny, to test the build.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch

from efface.models.mini import WEIGHTS as MINI

STAGES = ("table", "render", "tokenizer", "clip", "latents", "unet", "detectors", "pack", "card")
PARTS = {
    "clip": ("init", "score"),
    "unet": ("base0", "base1", "gold-category", "gold-style"),
    "detectors": ("report", "selection"),
}
GOLD = tuple(("unet", part) for part in ("gold-category", "gold-style"))
TRAINED = (("tokenizer", ""), ("clip", "init"), ("latents", ""), ("unet", "base0"), ("unet", "base1"))
JUDGED = (("detectors", "report"), ("detectors", "selection"), ("clip", "score"), ("pack", ""), ("card", ""))
SITTINGS = {
    "all": (("render", ""), *TRAINED, *GOLD, *JUDGED),
    "first": (*TRAINED, *JUDGED),
    "second": (("latents", ""), *GOLD),
}
MINUTES = {
    "init": 25.0,
    "score": 15.0,
    "base0": 240.0,
    "base1": 60.0,
    "gold-category": 240.0,
    "gold-style": 240.0,
    "report": 20.0,
    "selection": 20.0,
}
"""Of each training on two idle cores, where none are given."""
SHARES = {
    "init": 18,
    "score": 8,
    "base0": 42,
    "base1": 12,
    "gold-category": 50,
    "gold-style": 50,
    "report": 12,
    "selection": 8,
}
"""How a sitting shares its time out among its trainings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, *SITTINGS])
    parser.add_argument("--part", choices=sorted(p for parts in PARTS.values() for p in parts), help="of clip, unet or detectors")
    parser.add_argument("--work", type=Path, default=Path("runs/icons"), help="holds everything that the stages hand on")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--minutes", type=float, help="wall-clock limit of a training")
    limit.add_argument("--seconds", type=float, help="the same in seconds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--batch", type=int, help="of the UNet's training: 64 on a CPU, 512 on a GPU")
    parser.add_argument("--out", type=Path, help="pack, card: the folder of the weights, in place of the package's own")
    parser.add_argument("--every", type=int, help="card: draw every K-th concept with one seed, where all would take too long")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, few pictures and a second of training each")
    args = parser.parse_args()
    if args.stage in PARTS and args.part not in PARTS[args.stage]:
        parser.error(f"stage {args.stage} needs --part, one of {', '.join(PARTS[args.stage])}.")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    stages = SITTINGS.get(args.stage, ((args.stage, args.part or ""),))
    seconds = args.seconds or (60 * args.minutes if args.minutes else None)
    shares = {part: SHARES[part] for _, part in stages if part}
    for stage, part in stages:
        begun = time.time()
        given = seconds and seconds * shares.get(part, 0) / max(sum(shares.values()), 1)
        run(stage, part, args, given or (1.0 if args.smoke else 60 * MINUTES.get(part, 0.0)))
        print(f"stage {stage} {part} took {time.time() - begun:.0f} s", flush=True)


def run(stage: str, part: str, args: argparse.Namespace, seconds: float) -> None:
    """One stage, with its seconds of training."""
    from . import settings, sheets

    if stage == "table":
        from efface.io.files import write_text

        from .table import WORLD, make

        write_text(WORLD, make(args.work / "icons"))
        return
    device = torch.device(args.device)
    build = settings.SMOKE if args.smoke else settings.FULL if device.type == "cpu" else settings.ON_GPU
    if args.every:
        build = dataclasses.replace(build, every=args.every, seeds=1, styled=4000 // args.every, backgrounds=64, sheet=24)
    world, work = settings.load(build.toy), args.work
    if stage == "render":
        if args.smoke:
            renders = sheets.noise(world)
        else:
            from miniature.render import render_world

            renders = render_world(world, work / "icons")
        sheets.write(renders, world.styles, work)
    elif stage == "tokenizer":
        from miniature.train_tokenizer import train as train_tokenizer

        train_tokenizer(world, work, build.sizes, build.vocabulary, 2000 if args.smoke else 60_000)
    elif stage == "clip":
        from miniature.train_clip import train as train_clip

        recipe, sizes = settings.RECIPES[part], build.sizes
        if part == "score":
            sizes = dataclasses.replace(sizes, width=min(sizes.width, settings.SCORER_WIDTH))
        layers = build.sizes.text_layers if part == "init" else recipe.text_layers
        recipe = dataclasses.replace(recipe, batch=build.clip_batch, text_layers=layers)
        train_clip(world, work, part, seconds / 60, recipe, sizes, sheets.all_renders(world, work), str(device))
    elif stage == "latents":
        from .unet import encode_latents

        encode_latents(world, work, device, build.augmentations)
    elif stage == "unet":
        from .unet import train_part

        train_part(world, work, part, seconds, device, args.batch or build.batch, build)
    elif stage == "detectors":
        from miniature.train_detectors import train as train_detector

        train_detector(
            world,
            work,
            part,
            seconds / 60,
            vae_folder=MINI / "vae",
            renders=sheets.all_renders(world, work),
            pool_per_cell=build.pool_per_cell,
            batch=build.detector_batch,
            scale=build.detector_scale,
            device=device,
        )
    else:
        from .card import write_card
        from .pack import pack

        (pack if stage == "pack" else write_card)(world, work, args.out, build, device)


if __name__ == "__main__":
    main()
