"""``efface card`` and ``efface push``."""

from __future__ import annotations

from pathlib import Path

import click

from .main import command
from .options import device_option, dtype_option, json_option, out_option
from .output import emit


@command(
    "card",
    examples="""
    efface card no-engine.safetensors --evaluation runs/no-engine --export diffusers --model mini --out release
    """,
)
@click.argument("patch", metavar="PATCH")
@click.option("--evaluation", type=click.Path(path_type=Path), required=True, help="Folder of efface evaluate on this patch.")
@click.option("--attack", "attacks", type=click.Path(path_type=Path), multiple=True, help="Folder of an attack on it; repeat.")
@click.option(
    "--export", "exports", multiple=True, metavar="FORMAT", help="Also write this format (efface list formats); repeat."
)
@click.option("--model", "source", default=None, help="The base model, from which exports are written.")
@click.option("--base-model", default="", help="Hub id of the base model, where the patch does not name it.")
@click.option("--license", "licence", default="", help="Licence on the Hub; default: that of a known base model.")
@click.option("--no-pictures", is_flag=True, help="Leave the images before and after out.")
@out_option("New folder for patch, page, records and exports.", folder=True)
@device_option
@dtype_option
@json_option
def card(
    patch: str,
    evaluation: Path,
    attacks: tuple[Path, ...],
    exports: tuple[str, ...],
    source: str | None,
    base_model: str,
    licence: str,
    no_pictures: bool,
    out: Path,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Make a folder that can be published: the patch with its measured numbers, a model card, the records, and exports."""
    from .. import verbs
    from ..models.load import load_model

    read = verbs.load_patch(patch)
    model = load_model(source, dtype=dtype, device=device) if source is not None else None
    facts = verbs.card(
        read,
        evaluation,
        out=out,
        attacks=attacks,
        model=model,
        exports=exports,
        base_model=base_model,
        licence=licence,
        pictures=not no_pictures,
    )
    files = sorted(p.name for p in out.iterdir())
    emit(as_json, facts, f"Wrote {out} ({', '.join(files)}). Read README.md, then publish it: efface push {out} OWNER/NAME")


@command("push", examples="efface push release OWNER/NAME")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--message", default="", help="Message of the commit.")
@json_option
def push(folder: Path, repo: str, private: bool, message: str, as_json: bool) -> None:
    """Upload a FOLDER of efface card to the Hub. The token comes from HF_TOKEN or `hf auth login`, and is never printed."""
    from .. import verbs

    facts = verbs.push(folder, repo, private=private, message=message)
    emit(as_json, facts, f"Uploaded {facts['files']} files: {facts['url']}\nReaders load it with: efface.load_patch({repo!r})")
