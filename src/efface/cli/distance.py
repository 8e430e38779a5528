"""``efface distance``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .main import command
from .options import (
    clip_option,
    detector_option,
    device_option,
    dtype_option,
    encoders_option,
    json_option,
    model_option,
    out_option,
    patch_option,
    profile_option,
    space_option,
    world_option,
)
from .output import Bars, emit, note


@command(
    "distance",
    examples="""
    efface distance --model mini --patch no-engine.safetensors --images 60 --profile smoke
    """,
)
@model_option
@world_option
@patch_option(required=True)
@click.option("--images", default=200, show_default=True, help="Images of each set.")
@space_option
@profile_option
@clip_option
@detector_option
@out_option("JSON file for the numbers.", required=False)
@device_option
@dtype_option
@encoders_option
@json_option
def distance(
    source: str,
    world: str | None,
    patch_path: str,
    images: int,
    space: str,
    profile: str,
    clip: str | None,
    detector: tuple[str, ...],
    out: Path | None,
    device: str,
    dtype: str,
    encoders: str,
    as_json: bool,
) -> None:
    """Measure how far an erasure moved the images of everything but the target, as a whole: the Frechet distance (FD) and the
    kernel distance (KID) of the erased model's images to the unmodified model's, on the same prompts and seeds. The control is
    the unmodified model against itself on other seeds.
    """
    from .. import verbs
    from ..models.load import load_model
    from ..preservation.candidates import check_space
    from ..verbs.hub import load_patch
    from ..verbs.subject import with_world

    check_space(space)
    patch = load_patch(patch_path)
    model = with_world(load_model(source, dtype=dtype, device=device, encoders=encoders), world)
    with Bars() as bars:
        found = verbs.distance(
            model,
            patch,
            out=out,
            images=images,
            space=space,
            profile=profile,
            clip=clip,
            detector=detector,
            on_image=bars.images,
            note=note,
        )
    emit(as_json, found, _table(found))


def _table(found: dict[str, Any]) -> str:
    """One row for each backbone and set."""
    lines = [f"{'features':<28}{'images of':<26}{'FD':>10}{'KID':>12}{'+-':>10}"]
    for backbone, sets in found["backbones"].items():
        for key, what in (("distance", "the erased model"), ("control", "other seeds, unmodified")):
            d = sets[key]
            lines.append(f"{backbone:<28}{what:<26}{d['fd']:>10.3f}{d['kid']:>12.4f}{d['kid_std']:>10.4f}")
        s = sets["similarity"]
        lines.append(f"{'':<28}mean cosine of pairs {s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}], {s['n']} pairs")
    return "\n".join(lines)
