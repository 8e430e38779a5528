"""The main job on the miniature, start to finish: what ``make demo`` runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import api
from .errors import BadFile
from .methods import AP
from .models.load import load_model
from .training import Run

TARGET = "delivery truck"


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
    api.request_for(model, [target])
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()
    note(f"1/3 erasing {target!r} from the miniature with adversarial preservation")
    patch = api.erase(model, AP(**AP.presets["mini"]), targets=[target], run=Run(on_step=on_step))
    patch.save(out / "patch.safetensors")
    note("2/3 measuring: the same prompts and seeds before and after")
    folder = out / f"evaluation-{patch.digest()[:12]}"
    summary = api.evaluate(model, patch, out=folder, on_image=on_image, command="efface demo")
    note("3/3 writing the report")
    page = api.report(folder, out / "report.html")
    return {
        "target": target,
        "patch": str(out / "patch.safetensors"),
        "evaluation": str(folder),
        "report": str(page),
        "scores": summary["entrants"]["ap"]["scores"],
    }
