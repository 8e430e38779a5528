"""How far systems are from the gold model, which never saw the target: what an erasure should have come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..attacks.base import drawn
from ..concepts.prompts import Case
from ..equations.statistics import total_variation
from ..models.base import DiffusionModel
from .aggregate import BASE, mean_of
from .driver import System
from .profiles import Profile
from .records import Entrant, Row

GROUPS = {"target": ("direct",), "near": ("near", "trap"), "far": ("far",)}
"""Prompts by what they ask for -> axes."""
NAME = "gold"
"""How rows call the gold model."""
CASES = 8
"""Cases of each group."""
LEVELS = 4
"""Noise levels of each case, in the middles of as many equal parts of the schedule."""


def looked_at(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """The first cases of each group; a group without cases is left out."""
    found = {group: [c for c in cases if c.axis in axes][:CASES] for group, axes in GROUPS.items()}
    return {group: mine for group, mine in found.items() if mine}


def gold_cost(model: DiffusionModel, systems: Sequence[System], cases: Sequence[Case], profile: Profile) -> int:
    """UNet evaluations of :func:`to_gold`: images of the unmodified model, then its predictions and those of every system."""
    each = profile.evals_per_image(model) + LEVELS * len(_predicting(systems))
    return each * sum(map(len, looked_at(cases).values()))


def _predicting(systems: Sequence[System]) -> list[System]:
    """The unmodified model and the systems without a guard: what a guard returns is guided, and no prediction for a prompt."""
    return [System(Entrant(BASE, BASE, "trivial")), *(s for s in systems if s.guard is None)]


@torch.no_grad()
def predictions(
    model: DiffusionModel, systems: Sequence[System], cases: Sequence[Case], profile: Profile
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Of systems among which are the unmodified model and the gold model: system -> group of prompts -> the mean over cases, with
    a normal 95 % interval, of::

        sum_t | eps(z_t, t, p) - eps_G(z_t, t, p) |^2  /  sum_t | eps_0(z_t, t, p) - eps_G(z_t, t, p) |^2

    eps is the system's prediction, eps_G the gold model's and eps_0 the unmodified model's. z_t is the unmodified model's image
    of the case with noise at :data:`LEVELS` levels. 0 is the gold model itself, 1 is as far from it as the unmodified model, and
    more is farther than without an erasure. The two networks differ in everything a little, so no erasure comes to 0.

    Source: our specification, after FADE (arXiv:2510.12981). Cost: :func:`gold_cost`.
    """
    groups = looked_at(cases)
    flat = [c for mine in groups.values() for c in mine]
    t = model.schedule.numbered([int((i + 0.5) / LEVELS * model.schedule.size) for i in range(LEVELS)], model.device)
    noise = torch.cat([model.noise(LEVELS, torch.Generator().manual_seed(c.seed)) for c in flat])
    t = t.repeat(len(flat))
    z = model.schedule.noised(drawn(model, flat, profile.steps).repeat_interleave(LEVELS, 0), noise, t)

    def said(system: System) -> Tensor:
        """(cases, LEVELS, ...) predictions."""
        there, parts = system.model or model, list[Tensor]()
        with system.active(model):
            for i in range(len(flat)):
                rows = slice(i * LEVELS, (i + 1) * LEVELS)
                c = there.encode([system.rewrite(flat[i].prompt)]).repeat(LEVELS)
                parts.append(there.prediction(z[rows], t[rows], c))
        return torch.stack(parts)

    outputs = {system.entrant.id: said(system) for system in systems}

    def apart(a: str, b: str) -> Tensor:
        return (outputs[a] - outputs[b]).square().flatten(1).sum(1)

    most = apart(BASE, NAME)
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in outputs:
        ratios = dict(zip(flat, (apart(name, NAME) / most).tolist(), strict=True))
        found[name] = {group: {**(mean_of([ratios[c] for c in mine]) or {}), "n": len(mine)} for group, mine in groups.items()}
    return found


def names_drawn(rows: Sequence[Row]) -> dict[str, float]:
    """Entrant -> the total variation distance between what the report detector names in its images of the target's prompts, and
    what it names in the gold model's: 0 for the same shares of names, 1 where no name is shared. An image that cannot be judged
    counts as a name of its own. Few images spread over many names, so two models that draw alike are some way above 0."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        if row.axis == "direct":
            counts.setdefault(row.entrant, Counter())[str(row.detected) if row.valid else "invalid"] += 1
    return {entrant: total_variation(found, counts[NAME]) for entrant, found in counts.items() if NAME in counts}


def to_gold(
    model: DiffusionModel, systems: Sequence[System], cases: Sequence[Case], profile: Profile, rows: Sequence[Row]
) -> dict[str, Any]:
    """Both distances of every system, the gold model among them; see :func:`predictions` and :func:`names_drawn`."""
    far, names = predictions(model, _predicting(systems), cases, profile), names_drawn(rows)
    entrants = {e: {**far.get(e, {}), "names": names.get(e)} for e in {**far, **names}}
    return {"cases": CASES, "levels": LEVELS, "entrants": entrants}
