"""``efface report``."""

from __future__ import annotations

from pathlib import Path

import click

from .main import command
from .options import json_option, out_option
from .output import emit


@command(
    "report",
    examples="""
    efface report runs/no-engine --out no-engine.html
    """,
)
@click.argument("folder", type=click.Path(path_type=Path))
@out_option("HTML file to write.")
@json_option
def report(folder: Path, out: Path, as_json: bool) -> None:
    """Turn an evaluation FOLDER into one self-contained HTML page."""
    from .. import verbs

    path = verbs.report(folder, out)
    emit(as_json, {"out": str(path), "bytes": path.stat().st_size}, f"Wrote {path}.")
