"""Whom an erasure hurts: concepts that should stay, by the share of their images that is kept. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..plans.tables import Placed, shows

Counts = tuple[int, int]
"""Images kept, of those that count."""


def kept_by_concept(
    placed: Sequence[Placed], base: Mapping[tuple[str, ...], Mapping[str, bool]], axes: Sequence[str]
) -> dict[str, dict[str, Counts]]:
    """Targets -> concept of the axes -> how many of the images that the unmodified model gets right are still right."""
    found: dict[str, dict[str, Counts]] = {}
    for p in placed:
        known = base.get(tuple(p.place["targets"]), {})
        of = found.setdefault("; ".join(p.place["targets"]), {})
        for r in p.result["rows"]:
            if r["axis"] in axes and known.get(r["case_id"]):
                k, n = of.get(r["concept"], (0, 0))
                of[r["concept"]] = k + shows(r), n + 1
    return found


def worst_first(kept: Sequence[Mapping[str, Counts]]) -> list[str]:
    """Concepts by the share that all entrants together keep of them; equal ones by name."""
    shares: dict[str, float] = {}
    for concept in {c for entrant in kept for c in entrant}:
        counts = [entrant[concept] for entrant in kept if concept in entrant]
        shares[concept] = sum(k for k, _ in counts) / sum(n for _, n in counts)
    return sorted(shares, key=lambda c: (shares[c], c))
