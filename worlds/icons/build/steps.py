"""The steps from the renders to the trained parts: what each needs, how long it takes, and how it is run."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

import torch

from efface.models.mini import WEIGHTS as MINI


@dataclass(frozen=True)
class Step:
    """A stage of the build, or a part of one."""

    stage: str
    part: str = ""
    needs: frozenset[str] = frozenset()
    ends: float = 1.0
    """The share of a sitting at which a training ends."""
    minutes: float = 0.0
    """Of a training on two idle cores, where none are given."""
    workers: int = 0
    """Threads that draw its batches, in a sitting."""

    @property
    def name(self) -> str:
        return self.part or self.stage


def needs(*names: str) -> frozenset[str]:
    return frozenset(names)


STEPS = (
    Step("styles"),
    Step("tokenizer"),
    Step("clip", "init", needs("styles", "tokenizer"), ends=0.215, minutes=25, workers=4),
    Step("latents", "", needs("styles")),
    Step("captions", "", needs("latents", "tokenizer")),
    Step("unet", "trunk", needs("captions", "init"), ends=0.53, minutes=300),
    Step("unet", "base0", needs("trunk"), ends=0.985, minutes=120),
    Step("unet", "base1", needs("trunk"), ends=0.985, minutes=120),
    Step("unet", "gold-category", needs("trunk"), ends=0.985, minutes=120),
    Step("unet", "gold-style", needs("trunk"), ends=0.985, minutes=120),
    Step("detectors", "report", needs("latents"), ends=0.5, minutes=50, workers=5),
    Step("detectors", "selection", needs("latents"), ends=0.5, minutes=50, workers=4),
    Step("clip", "score", needs("styles", "tokenizer"), ends=0.33, minutes=15, workers=2),
)


def run(step: Step, args: argparse.Namespace, seconds: float, until: float | None = None) -> None:
    """One step, with its seconds of training. In a sitting, ``until`` is the time of day at which it ends."""
    from . import settings, sheets

    stage, part, workers = step.stage, step.part, 0 if until is None else step.workers
    if args.threads:
        torch.set_num_threads(args.threads)
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
    elif stage == "styles":
        sheets.all_renders(world, work)
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
        renders = sheets.all_renders(world, work)
        train_clip(world, work, part, seconds / 60, recipe, sizes, renders, str(device), workers)
    elif stage == "latents":
        from .unet import encode_latents

        encode_latents(world, work, device, build.augmentations)
    elif stage == "captions":
        from .unet import write_captions

        write_captions(world, work, build.captions)
    elif stage == "unet":
        from .unet import train_part

        train_part(world, work, part, seconds, device, args.batch or build.batch, build, until)
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
            workers=workers,
        )
    else:
        from .card import write_card
        from .pack import pack

        (pack if stage == "pack" else write_card)(world, work, args.out, build, device)
