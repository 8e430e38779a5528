"""The main job on the miniature, start to finish: what ``make demo`` runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .concepts.prompts import filled
from .errors import BadFile
from .io.images import write_grid
from .methods import AP
from .models.base import DiffusionModel
from .models.load import load_model
from .patches import Patch
from .training import Run
from .verbs import erase, evaluate, report, sample
from .verbs.erase import request_for
from .verbs.subject import suite_for

TARGET = "fire engine"
COLUMNS = 10


def write_picture(model: DiffusionModel, patch: Patch, names: list[str], path: Path) -> None:
    """Two rows per concept, the same seeds before and after: what the README shows."""
    prompts = [filled("a {}", name) for name in names]
    before = sample(model, prompts, n=COLUMNS, seed=500)
    with patch.applied(model):
        after = sample(model, prompts, n=COLUMNS, seed=500)
    rows = [part for pair in zip(before.split(COLUMNS), after.split(COLUMNS), strict=True) for part in pair]
    write_grid(torch.cat(rows), columns=COLUMNS, path=path)


def run_demo(
    out: Path,
    target: str | None = None,
    *,
    on_step: Callable[[Any, int], None] = lambda step, total: None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Erase ``target`` with AP, evaluate with profile mini-lite, write the report. Returns paths and the headline."""
    target = target or TARGET
    marker = out / "efface-demo"
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise BadFile(f"{out} is not empty and was not made by the demo; give another --out.")
    model = load_model("mini")
    request_for(model, [target])
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()
    note(f"1/3 erasing {target!r} from the miniature with adversarial preservation")
    patch = erase(model, AP.preset("mini"), targets=[target], run=Run(on_step=on_step))
    patch.save(out / "patch.safetensors")
    note("2/3 measuring: the same prompts and seeds before and after")
    folder = out / f"evaluation-{patch.digest()[:12]}"
    summary = evaluate(model, patch, out=folder, on_image=on_image, command="efface demo")
    note("3/3 writing the report")
    page = report(folder, out / "report.html")
    picture = out / "before-after.png"
    suite = suite_for(model, [target])
    write_picture(model, patch, [target, *(group[0].name for group in (suite.near, suite.trap, suite.far) if group)], picture)
    return {
        "target": target,
        "picture": str(picture),
        "patch": str(out / "patch.safetensors"),
        "evaluation": str(folder),
        "report": str(page),
        "scores": summary["entrants"]["ap"]["scores"],
    }
