"""The search that looks at every candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.cond import Cond
from ..training.loop import Step
from .search import Chosen, Still, rows_of

CHUNK = 64


class ExhaustiveSearch(Still):
    """``c_a = argmax_c |eps'(z_t, t, c) - eps(z_t, t, c)|^2`` over all candidates, looked up again every ``refresh`` updates.

    ``damage(cond, z, t)``: (n,) damage per row. Cost: 2 evaluations per candidate, target and refresh, plus the latents.
    """

    def __init__(self, names: Sequence[Sequence[str]], rows: Sequence[Cond], refresh: int) -> None:
        self.names, self.rows, self.refresh = names, rows, refresh
        self.worst = [0] * len(names)
        self.margin = [0.0] * len(names)

    def due(self, step: Step) -> bool:
        return step.index % self.refresh == 0

    @torch.no_grad()
    def rank(self, i: int, damage: Callable[[Cond, Tensor, Tensor], Tensor], z: Tensor, t: Tensor) -> None:
        parts = [
            damage(self.rows[i][slice(k, k + CHUNK)], z[k : k + CHUNK], t[k : k + CHUNK])
            for k in range(0, len(self.rows[i]), CHUNK)
        ]
        scores = torch.cat(parts)
        self.worst[i] = int(scores.argmax())
        self.margin[i] = float(scores.max() / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny))

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        return rows_of(self.names, self.rows, e, [self.worst[i] for i in e])

    def facts(self, i: int) -> dict[str, float]:
        """How many times the mean damage the worst candidate has."""
        return {"margin": self.margin[i]}

    def state_dict(self) -> dict[str, Any]:
        return {"worst": self.worst, "margin": self.margin}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.worst, self.margin = list(state["worst"]), list(state["margin"])
