"""``efface import``."""

from __future__ import annotations

from pathlib import Path

import click

from .main import command
from .options import device_option, dtype_option, force_option, json_option, model_option, out_option, target_option
from .output import emit, free, written


@command(
    "import",
    examples="""
    efface import their-lora.safetensors --model path/to/model --target "Van Gogh" --out no-van-gogh.safetensors
    """,
)
@click.argument("foreign", metavar="FILE", type=click.Path(path_type=Path))
@model_option
@target_option("Concept that the file is said to erase; repeat for several.", required=True)
@click.option("--name", default="imported", show_default=True, help="What tables call the erasure.")
@out_option("Patch file to write (.safetensors).")
@force_option
@device_option
@dtype_option
@json_option
def import_(
    foreign: Path,
    source: str,
    targets: tuple[str, ...],
    name: str,
    out: Path,
    force: bool,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Make a patch of somebody else's erasure: a LoRA, a state dict, a model folder, or a checkpoint."""
    from .. import verbs
    from ..errors import BadFile
    from ..models.load import load_model

    free(out, force)
    if not foreign.exists():
        raise BadFile(f"there is no file {str(foreign)!r}.")
    patch = verbs.import_patch(load_model(source, dtype=dtype, device=device), foreign, targets=targets, name=name)
    patch.save(out)
    facts = written(out, patch)
    kind = patch.card.config["read as"]
    text = f"Wrote {out} ({facts['bytes'] / 1e6:.1f} MB): {foreign} was read as {kind}, and {facts['tensors']} tensors change."
    if notes := patch.card.config.get("notes"):
        facts["notes"] = notes
        text += f"\n{notes}"
    emit(as_json, facts, text)
