"""What it costs an attack to bring something back: images looked at, and updates of fine-tuning. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ..plans.tables import Placed, shows


def growth(placed: Sequence[Placed], trained: bool) -> list[tuple[float, int, int]]:
    """How the number of broken cases grows with what is spent, over the cases that count: (images looked at for each case, cases
    broken by them, cases), or where weights are ``trained`` (updates, cases that show the target then, cases)."""
    if trained:
        stages: dict[float, list[bool]] = defaultdict(list)
        for p in placed:
            for r in p.result["attempts"]:
                if r["base_hit"]:
                    stages[float(r["stage"].split()[-1])].append(shows(r))
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
