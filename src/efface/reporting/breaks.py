"""What an attack brought back, case by case, and what that cost: images looked at, and updates of fine-tuning. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.attacked import summarise_attacks
from ..evaluation.records import AttemptRow
from ..plans.tables import Placed


def shows_target(r: Mapping[str, Any]) -> bool:
    """Whether a record's image is valid and shows what its case asks for."""
    return bool(r["valid"] and r["detected"] == r["concept"])


def broken_cases(p: Placed) -> dict[str, bool]:
    """Case -> broken, of the cases that count and are decided; see :func:`efface.evaluation.attacked.summarise_attacks`."""
    label = p.place["attack"]
    rows = {label: [AttemptRow(attack=label, **r) for r in p.result["attempts"]]}
    found: dict[str, bool] = summarise_attacks(rows, {label: p.facts}, {label: ()})["attacks"][label]["cases"]
    return found


def growth(placed: Sequence[Placed], trained: bool) -> list[tuple[float, int, int]]:
    """How the number of broken cases grows with what is spent, over the cases that count: (images looked at for each case, cases
    broken by them, cases), or where weights are ``trained`` (updates, cases that show the target then, cases)."""
    if trained:
        stages: dict[float, list[bool]] = defaultdict(list)
        for p in placed:
            for r in p.result["attempts"]:
                if r["base_hit"]:
                    stages[float(r["stage"].split()[-1])].append(shows_target(r))
        return [(updates, sum(hits), len(hits)) for updates, hits in sorted(stages.items())]
    first, most = list[int | None](), 0
    for p in placed:
        images: dict[str, list[bool]] = defaultdict(list)
        for r in p.result["attempts"]:
            images[r["case_id"]].append(shows_target(r))
        first += [images[case].index(True) + 1 if broken else None for case, broken in broken_cases(p).items()]
        most = max([most, *map(len, images.values())])
    looked = sorted({1, most, *(k for k in first if k is not None)})
    return [(k, sum(f is not None and f <= k for f in first), len(first)) for k in looked] if first else []


def half(placed: Sequence[Placed]) -> str:
    """The first stage of a fine-tuning at which half of the cases show the target; empty where none counts."""
    stages: dict[str, list[bool]] = defaultdict(list)
    for p in placed:
        for r in p.result["attempts"]:
            if r["base_hit"]:
                stages[r["stage"]].append(shows_target(r))
    if not stages:
        return ""
    return next((s for s, hits in stages.items() if 2 * sum(hits) >= len(hits)), f"more than {[*stages][-1]}")
