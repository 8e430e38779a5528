"""``efface demo``."""

from __future__ import annotations

from pathlib import Path

import click

from .main import command
from .options import FOLDER, json_option
from .output import Bars, TrainingBar, emit, note


@command("demo", examples="efface demo --out runs/demo")
@click.option("--out", type=FOLDER, default=Path("runs/demo"), show_default=True, help="Folder for patch, pictures and report.")
@click.option("--target", default=None, help="Concept of the miniature to erase.  [default: fire engine]")
@json_option
def demo(out: Path, target: str | None, as_json: bool) -> None:
    """Erase a concept from the miniature, measure it, and write the report. Takes minutes on two cores."""
    from ..demo import run_demo

    with TrainingBar("ap") as bar, Bars() as bars:
        facts = run_demo(out, target, on_step=bar.step, on_image=bars.images, note=note)
    emit(as_json, facts, f"The report is {facts['report']}.")
