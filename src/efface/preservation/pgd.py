"""A search without candidates: a free embedding, climbed by normalised steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..equations.steps import into_ball, normalised_ascent
from ..models.cond import Cond
from ..training.learned import collected
from ..training.loop import Step
from ..training.processes import share
from .search import Chosen


class PgdSearch:
    """A free embedding per target, started at the target and climbed by steps of length ``rate |p|``.

    ``radius`` > 0 projects it back to within ``radius |c_e|`` of the target; the official code, despite its name, does not.
    """

    def __init__(self, targets: Sequence[str], rows: Cond, *, rate: float, radius: float) -> None:
        self.targets, self.origin, self.rate, self.radius = targets, rows, rate, radius
        self.points = [row.clone().requires_grad_(True) for row in rows.tokens]

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        own = share(list(e))
        c = replace(self.origin[list(own)], tokens=torch.stack([self.points[i] for i in own]))
        return Chosen([self.targets[i] for i in e], c)

    def follow(self, e: Sequence[int]) -> None:
        for i, gradient in collected(self.points, e).items():
            p = self.points[i]
            moved = normalised_ascent(p.detach()[None], gradient[None], self.rate)
            p.data = (into_ball(moved, self.origin.tokens[i][None], self.radius) if self.radius else moved)[0]

    def facts(self, i: int) -> dict[str, float]:
        """How far the embedding has gone, in units of the target's norm."""
        c = self.origin.tokens[i]
        return {"moved": float((self.points[i].detach() - c).norm() / c.norm())}

    def state_dict(self) -> dict[str, Any]:
        return {"points": [p.detach() for p in self.points]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for p, kept in zip(self.points, state["points"], strict=True):
            p.data.copy_(kept)
