"""What it costs an attack to bring something back: images looked at, and updates of fine-tuning. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ..plans.tables import Placed, shows

STEP = "step "
"""How the stages of an attack begin that trains: "step 25" is after 25 updates."""


def trains(placed: Sequence[Placed]) -> bool:
    """Whether the stages of this attack are updates of fine-tuning. Those of others are shares of a way, or parts of a model."""
    stages = {r["stage"] for p in placed for r in p.result["attempts"]}
    return bool(stages) and all(stage.startswith(STEP) for stage in stages)


def growth(placed: Sequence[Placed], curve: bool) -> list[tuple[float, int, int]]:
    """How the number of broken cases grows with what is spent, over the cases that count: (images looked at for each case, cases
    broken by them, cases), or of an attack that trains (updates, cases that show the target then, cases). ``curve``: whether its
    stages are points of one; empty where they are and count no updates."""
    if curve:
        if not trains(placed):
            return []
        stages: dict[float, list[bool]] = defaultdict(list)
        for p in placed:
            for r in p.result["attempts"]:
                if r["base_hit"]:
                    stages[float(r["stage"].removeprefix(STEP))].append(shows(r))
        return [(updates, sum(hits), len(hits)) for updates, hits in sorted(stages.items())]
    first, most = list[int | None](), 0
    for p in placed:
        images: dict[str, list[bool]] = defaultdict(list)
        for r in p.result["attempts"]:
            images[r["case_id"]].append(shows(r))
        first += [images[case].index(True) + 1 if broken else None for case, broken in p.broken.items()]
        most = max([most, *map(len, images.values())])
    looked = sorted({1, most, *(k for k in first if k is not None)})
    return [(k, sum(f is not None and f <= k for f in first), len(first)) for k in looked] if first else []
