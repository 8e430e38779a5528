"""``efface survive``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .main import command
from .options import (
    clip_option,
    detector_option,
    device_option,
    far_option,
    json_option,
    model_option,
    near_option,
    out_option,
    profile_option,
)
from .output import Bars, command_line, emit, note


@command(
    "survive",
    examples="""
    efface survive no-engine.safetensors --model mini --profile smoke --condition float16 --condition euler --out runs/some
    efface survive no-engine.safetensors --model mini --out runs/survive
    """,
)
@click.argument("patch_path", metavar="PATCH")
@model_option
@click.option("--condition", "only", multiple=True, help="One condition; repeat. Without it, all of them (see the table).")
@click.option("--target", default=None, help="Which target is looked at, where the patch has several.")
@click.option("--cases", type=int, default=None, help="Prompts that name the target; default: all of the profile.")
@profile_option
@click.option("--lora", default=None, metavar="FILE", help="LoRA to stack, in place of one that is trained on other concepts.")
@click.option("--merge", default=None, metavar="PATCH", help="Another patch of the same base to merge with.")
@click.option("--updates", type=int, default=100, show_default=True, help="Steps of fine-tuning on images of other concepts.")
@click.option("--margin", type=float, default=0.1, show_default=True, help="Largest share of cases that may come back.")
@clip_option
@detector_option
@near_option
@far_option
@out_option("Folder for survive.json and survive.html.", folder=True)
@device_option
@json_option
def survive(
    patch_path: str,
    source: str,
    only: tuple[str, ...],
    target: str | None,
    cases: int | None,
    profile: str,
    lora: str | None,
    merge: str | None,
    updates: int,
    margin: float,
    clip: str | None,
    detector: tuple[str, ...],
    near: tuple[str, ...],
    far: tuple[str, ...],
    out: Path,
    device: str,
    as_json: bool,
) -> None:
    """Say whether the erasure in PATCH survives what users do with a model: weights in fewer bits, other schedulers, steps,
    guidance and sizes, a LoRA on top, merging, fine-tuning on something harmless.

    Every condition draws the same prompts and seeds with the unmodified and with the erased model. Where the unmodified model no
    longer draws the target under a condition, nothing was tested, and the table says so.
    """
    from .. import verbs
    from ..models.load import load_model
    from ..verbs.hub import load_patch

    patch = load_patch(patch_path)
    model = load_model(source, device=device)
    with Bars() as bars:
        record = verbs.survive(
            model,
            patch,
            out=out,
            only=only,
            target=target,
            cases=cases,
            profile=profile,
            lora=lora,
            merge=merge,
            updates=updates,
            margin=margin,
            clip=clip,
            detector=detector,
            near=near,
            far=far,
            on_image=bars.images,
            note=note,
            command=command_line(),
        )
    emit(as_json, {"out": str(out), **record}, survival_table(record))


def survival_table(record: dict[str, Any]) -> str:
    """One line per condition."""
    wide = max((len(r["told"]) for r in record["conditions"]), default=10)
    lines = [f"{'condition':<{wide}}  {'result':<13}{'unmodified':>11}{'plain':>9}{'under':>9}  difference, 95 % interval"]
    for r in record["conditions"]:
        k = [f"{r[key]['k']}/{r[key]['n']}" for key in ("base", "plain", "under")]
        d = r["difference"]
        told = r["why"] or f"{100 * d['value']:+.0f} [{100 * d['low']:+.0f}, {100 * d['high']:+.0f}] points"
        lines.append(f"{r['told']:<{wide}}  {r['status']:<13}{k[0]:>11}{k[1]:>9}{k[2]:>9}  {told}")
    return "\n".join(lines)
