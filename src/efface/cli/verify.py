"""``efface verify``."""

from __future__ import annotations

from pathlib import Path

import click

from .main import command
from .options import clip_option, detector_option, device_option, dtype_option, json_option
from .output import Bars, emit, note


@command(
    "verify",
    examples="""
    efface verify no-engine.safetensors
    efface verify no-engine.safetensors --model mini
    """,
)
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--model", "source", default=None, help="The base model: mini, a diffusers folder, a checkpoint file or a Hub id.")
@click.option("--remeasure", is_flag=True, help="Draw the recorded evaluation again and compare every rate with its interval.")
@click.option("--key", default=None, help="Public key that must have signed the file: a file, or the key in base64.")
@clip_option
@detector_option
@device_option
@dtype_option
@json_option
def verify(
    path: Path,
    source: str | None,
    remeasure: bool,
    key: str | None,
    clip: str | None,
    detector: str | None,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Check a patch, an export or an exported folder: whether it is whole, unchanged, complete, and fits its base model.

    Exit code 1 where a check fails. Nothing in the file is executed.
    """
    from .. import verbs
    from ..models.load import load_model

    model = load_model(source, dtype=dtype, device=device) if source is not None else None
    with Bars() as bars:
        found = verbs.verify(
            path, model, remeasure=remeasure, key=key, clip=clip, detector=detector, on_image=bars.images, note=note
        )
    width = max(len(c.name) for c in found.checks) + 2
    failed = sum(c.status == "failed" for c in found.checks)
    skipped = sum(c.status == "skipped" for c in found.checks)
    lines = [f"{c.status:<9}{c.name:<{width}}{c.text}" for c in found.checks]
    verdict = (
        f"{failed} check{'s' if failed > 1 else ''} FAILED: do not use {path}."
        if failed
        else f"No check failed, {skipped} were skipped."
    )
    emit(as_json, found.json(), "\n".join([*lines, verdict]))
    if failed:
        click.get_current_context().exit(1)
