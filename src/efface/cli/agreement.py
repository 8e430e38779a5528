"""``efface agreement``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .main import command
from .options import json_option, out_option
from .output import emit, rate

SHOWN = 10
"""Disagreements that are printed; all of them are in the JSON."""


@command(
    "agreement",
    examples="""
    efface evaluate --model mini --patch no-engine.safetensors --profile smoke --keep-images --out runs/seen
    efface agreement runs/seen
    """,
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), default=None, help="The filled-in table; default: FOLDER/labels.csv.")
@out_option("JSON file for the numbers.", required=False)
@json_option
def agreement(folder: Path, labels: Path | None, out: Path | None, as_json: bool) -> None:
    """Compare what people see in the images of an evaluation with what its detector said: FOLDER was written by efface evaluate
    --keep-images. Write what each image shows into the column "label" of its table labels.csv, a name or "broken".
    """
    from .. import verbs

    found = verbs.agreement(folder, labels, out=out)
    emit(as_json, found, _told(found))


def _rate(r: dict[str, Any]) -> str:
    return " ".join(rate(r))


def _told(found: dict[str, Any]) -> str:
    kappa = "not defined, because one of the two always says the same" if found["kappa"] is None else f"{found['kappa']:.2f}"
    lines = [
        f"{found['labelled']} images have a label, {found['unlabelled']} have none.",
        f"People and the detector agree on whether the concept is there: {_rate(found['agreement'])}; Cohen's kappa is {kappa}.",
        f"Where people see the concept, the detector sees it too: {_rate(found['sensitivity'])}.",
        f"Where people do not see it, the detector does not either: {_rate(found['specificity'])}.",
        "",
        f"{'entrant':<12}{'axis':<10}{'people see the concept':<32}the detector sees it",
    ]
    for entrant, axes in found["entrants"].items():
        lines += [f"{entrant:<12}{axis:<10}{_rate(a['people']):<32}{_rate(a['detector'])}" for axis, a in axes.items()]
    for d in found["disagreements"][:SHOWN]:
        lines.append(f"{d['image']} should show {d['concept']!r}: people say {d['people']!r}, the detector {d['detector']!r}.")
    return "\n".join(lines)
