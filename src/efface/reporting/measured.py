"""What was measured, in the few numbers that a card carries: rates with counts and intervals, and how to measure them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadFile
from ..evaluation.records import RunFile
from ..io.files import file_digest

RATE = ("k", "n", "low", "high", "invalid")
PROFILE = ("name", "steps", "guidance", "cases", "damaged", "open_steps")
WORST = 10
"""Names of the search for damage that a card carries; the record has all of them."""


def measured(
    folder: Path,
    run: RunFile,
    summary: Mapping[str, Any],
    damage: Mapping[str, Any] | None,
    attacks: Sequence[Mapping[str, Any]],
    digest: str,
) -> dict[str, Any]:
    """The measurements of the patch with this digest, as plain data.

    ``evaluation``: profile, suite, judge and, by axis, the rate with k, n and its 95 % interval. ``damage``: the names that a
    search found worst. ``attacks``: cases broken, one entry per folder. Raises BadFile where the evaluation is of another
    patch, or of a patch under a guard: a file cannot promise what a guard beside it does.
    """
    entrant = next((e for e in run.entrants if e.kind == "patch"), None)
    if entrant is None or entrant.card is None or entrant.card.get("digest") != digest:
        raise BadFile(f"{folder} evaluates another patch than this one; run efface evaluate --patch on it.")
    if entrant.id != entrant.card.get("method"):
        raise BadFile(
            f"{folder} evaluates the patch under a guard ({entrant.id}), which is not in the file; evaluate it without."
        )
    axes = summary["entrants"][entrant.id]["axes"]
    found: dict[str, Any] = {
        "evaluation": {
            "created": run.created,
            "profile": {key: run.profile[key] for key in PROFILE},
            "rates": {axis: _axis(a) for axis, a in axes.items()},
            "suite": dict(run.suite),
            "judge": _judge(run.detectors),
            "versions": dict(run.versions),
            "rows_sha256": file_digest(folder / "rows.jsonl"),
        }
    }
    if damage is not None:
        rows = [{k: r[k] for k in ("name", "drop", "low", "high", "damaged")} for r in damage["rows"][:WORST]]
        found["damage"] = {k: damage[k] for k in ("names", "damaged", "seeds")} | {"worst": rows}
    if attacks:
        found["attacks"] = [_attack(a) for a in attacks]
    return found


def _axis(axis: Mapping[str, Any]) -> dict[str, Any]:
    measure = "erased_valid" if axis["want"] == "low" else "preserved"
    return {"measure": measure, **{k: axis[measure][k] for k in RATE}}


def _judge(detectors: Mapping[str, Any]) -> dict[str, Any]:
    """Names alone: a card is published, and facts of a judge may hold paths."""
    report, clip = detectors.get("report"), detectors.get("clip")
    names = {"report": report.get("name") if isinstance(report, Mapping) else report}
    return {**names, "clip": Path(str(clip.get("name") if isinstance(clip, Mapping) else clip)).name}


def _attack(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The attack itself and the union with its controls."""
    name, attack = next((n, a) for n, a in summary["attacks"].items() if a["role"] == "attack")
    return {
        "attack": name,
        "tier": attack["tier"],
        "target": attack["target"],
        "budget": summary["budget"],
        "broken": {k: attack["rate"][k] for k in RATE},
        "undecided": attack["undecided"],
        "union": {k: summary["union"][k] for k in RATE} | {"over": list(summary["union"]["over"])},
    }
