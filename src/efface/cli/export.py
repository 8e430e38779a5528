"""``efface export``."""

from __future__ import annotations

from pathlib import Path

import click

from .main import command
from .options import device_option, dtype_option, force_option, json_option, model_option
from .output import emit, free


@command(
    "export",
    examples="""
    efface export no-engine.safetensors --to diffusers --out no-engine-lora.safetensors
    """,
)
@click.argument("patch_path", metavar="PATCH")
@model_option
@click.option(
    "--to",
    "kind",
    required=True,
    metavar="FORMAT",
    help="diffusers, kohya, diff, folder or single-file; see: efface list formats.",
)
@click.option("--rank", type=int, default=0, help="Rank of a LoRA; default: the smallest that --tolerance allows.")
@click.option(
    "--tolerance",
    type=float,
    default=None,
    help="Share of the patch's norm that a LoRA without --rank may leave out; default: 0.001.",
)
@click.option("--half", is_flag=True, help="Store half-precision numbers.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File (.safetensors) or new folder to write.")
@force_option
@device_option
@dtype_option
@json_option
def export(
    patch_path: str,
    source: str,
    kind: str,
    rank: int,
    tolerance: float | None,
    half: bool,
    out: Path,
    force: bool,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Write a patch as a file that other tools load, read that file back, and compare it with the patch."""
    from .. import verbs
    from ..models.load import load_model
    from ..verbs.export import check_export
    from ..verbs.hub import load_patch

    check_export(kind, out, half)
    if kind != "folder":
        free(out, force)
    patch = load_patch(patch_path)
    model = load_model(source, dtype=dtype, device=device)
    facts = verbs.export(model, patch, out, to=kind, rank=rank, tolerance=tolerance, half=half)
    ranked = f", rank {facts['rank']}" if facts["rank"] else ""
    text = f"Wrote {out} ({kind}, {facts['bytes'] / 1e6:.2f} MB, {facts['tensors']} tensors{ranked}). "
    emit(as_json, facts, text + f"Read back, the file differs from the patch by {facts['residual']:.1g} of the patch's norm.")
