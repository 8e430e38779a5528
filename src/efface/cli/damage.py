"""``efface damage``."""

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
    "damage",
    examples="""
    efface damage --model mini --patch no-engine.safetensors --count 8 --profile smoke --out runs/what-else-it-broke
    """,
)
@model_option
@world_option
@patch_option(required=True)
@click.option("--count", default=20, show_default=True, help="Names in the list.")
@space_option
@click.option(
    "--by",
    default=None,
    help="Search the names by images, or by noise (the change of the noise predictions). Default: images up to 200 names.",
)
@profile_option
@clip_option
@detector_option
@out_option("Folder for the record and the pictures.", folder=True)
@device_option
@dtype_option
@encoders_option
@json_option
def damage(
    source: str,
    world: str | None,
    patch_path: str,
    count: int,
    space: str,
    by: str | None,
    profile: str,
    clip: str | None,
    detector: tuple[str, ...],
    out: Path,
    device: str,
    dtype: str,
    encoders: str,
    as_json: bool,
) -> None:
    """Find what else a patch broke: the names it hurts most, confirmed on other seeds, with pictures before and after."""
    from .. import verbs
    from ..io.files import check_writable
    from ..io.images import join_pictures
    from ..models.load import load_model
    from ..preservation.candidates import check_space
    from ..verbs.hub import load_patch
    from ..verbs.subject import with_world

    patch = load_patch(patch_path)
    check_writable(out)
    check_space(space)
    model = with_world(load_model(source, dtype=dtype, device=device, encoders=encoders), world)
    with Bars() as bars:
        found = verbs.damage(
            model,
            patch,
            out=out,
            count=count,
            space=space,
            by=by,
            profile=profile,
            clip=clip,
            detector=detector,
            on_image=bars.images,
            note=note,
        )
    join_pictures(out / "images" / "damage", len(found["rows"]), out / "before-after.png")
    emit(as_json, {"out": str(out), **found}, damage_table(found))


def damage_table(found: dict[str, Any]) -> str:
    """The list of names as rows of text."""
    lines = [
        f"{'name':<22}{'fall of the score':>18}  {'95 % interval':<18}{'named before':>14}{'after':>7}{'invalid':>9}{'p':>9}  "
        "damaged by"
    ]
    for r in found["rows"]:
        before, after = ("-" if r[k] is None else f"{r[k]}/{found['seeds']}" for k in ("before", "after"))
        interval = "too few images" if r["low"] is None else f"[{r['low']:.1f}, {r['high']:.1f}]"
        lines.append(
            f"{r['name'][:21]:<22}{r['drop']:>18.1f}  {interval:<18}{before:>14}{after:>7}{r['invalid']:>9}{r['p']:>9.4f}  "
            + (" and ".join(r["by"]) or "-")
        )
    worst = f"{found['damaged']} of the {len(found['rows'])} names that looked worst of {found['names']} are damaged"
    return "\n".join(
        [
            *lines,
            f"{worst}: their score falls, or the detector names them less often (false discovery rate 5 %, on {found['seeds']} "
            "images each that did not choose them). An invalid image is not named.",
        ]
    )
