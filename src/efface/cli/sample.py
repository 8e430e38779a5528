"""``efface sample``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from .main import command
from .options import (
    device_option,
    dtype_option,
    encoders_option,
    json_option,
    model_option,
    out_option,
    patch_option,
    storage_option,
)
from .output import emit, ends_in


@command(
    "sample",
    examples="""
    efface sample --model mini --prompt "a fire engine" --prompt "a police car" --out grid.png
    """,
)
@model_option
@patch_option()
@click.option("--scale", default=1.0, show_default=True, help="Strength of the patch: 0 is the unmodified model.")
@click.option("--prompt", "prompts", multiple=True, required=True, help="Prompt; repeat for several.")
@click.option("--n", default=4, show_default=True, help="Images per prompt.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first image of every prompt; the next ones count up.")
@click.option(
    "--steps",
    type=int,
    default=None,
    help="Sampler steps; default: 16 on the miniature, else those of the family's pipeline, such as 50 or 4.",
)
@click.option("--guidance", type=float, default=None, help="Guidance scale; default: 4 on the miniature, 5 on SDXL, else 7.5.")
@out_option("PNG file to write: a grid with one row per prompt.")
@device_option
@dtype_option
@encoders_option
@storage_option
@json_option
def sample(
    source: str,
    patch_path: str | None,
    scale: float,
    prompts: tuple[str, ...],
    n: int,
    seed: int,
    steps: int | None,
    guidance: float | None,
    out: Path,
    device: str,
    dtype: str,
    encoders: str,
    storage: str | None,
    as_json: bool,
) -> None:
    """Draw images, with or without a patch, as one PNG grid. Images of a sensitive prompt, such as one that asks for nudity, are
    blurred before they are written."""
    from .. import verbs
    from ..concepts.sensitive import sensitive
    from ..io.images import write_grid
    from ..models.load import load_model
    from ..verbs.hub import load_patch

    ends_in(out, ".png", "a PNG picture")
    patch = load_patch(patch_path).scaled(scale) if patch_path is not None else None
    model = load_model(source, dtype=dtype, device=device, encoders=encoders, storage=storage)
    active: contextlib.AbstractContextManager[Any] = patch.applied(model) if patch is not None else contextlib.nullcontext()
    with active:
        images = verbs.sample(model, prompts, n=n, seed=seed, steps=steps, guidance=guidance)
    hidden = sensitive(prompts)
    write_grid(images, columns=n, path=out, hidden=hidden)
    facts = {"out": str(out), "images": len(images), "blurred": hidden, "evals": model.evals.forward}
    emit(as_json, facts, f"Wrote {out} ({len(images)} images{', blurred because a prompt is sensitive' if hidden else ''}).")
