"""The search that measures the damage of every candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models.cond import Cond
from ..options import option
from ..training.loop import Step
from ..training.scene import Scene
from .search import AmongCandidates, Chosen, Running, rows_of

CHUNK = 64
"""Number of candidates whose damage is measured in one call."""


@dataclass(frozen=True, kw_only=True)
class Exhaustive(AmongCandidates):
    """Preserve the candidate with the largest damage of all, measured again every ``refresh``
    updates. With ``by=relative`` it is the damage as a share of the candidate's own reach
    (:meth:`Scene.relative_damage`)."""

    name: ClassVar[str] = "exhaustive"

    refresh: int = option(10, "updates between two measurements of all candidates", "ours", low=1)

    by: str = option(
        "damage",
        "what is compared: the change of a candidate's prediction (damage), or this change as a share of the distance from its "
        "unmodified prediction to that for the empty prompt (relative)",
        "ours",
        choices=("damage", "relative"),
    )

    def begin(self, scene: Scene, names: Sequence[Sequence[str]]) -> Running:
        measure = scene.relative_damage if self.by == "relative" else scene.damage
        return ExhaustiveSearch(scene, names, [scene.model.encode(n) for n in names], self.refresh, measure)

    def evals(self, steps: int, batch: int, names: Sequence[Sequence[str]], draw_cost: Callable[[int], float]) -> float:
        looks = -(-steps // self.refresh)
        each = 3 if self.by == "relative" else 2
        return looks * (draw_cost(1) * len(names) + each * sum(map(len, names)))


class ExhaustiveSearch(Running):
    """The candidate ``c_a = argmax_c d(c)`` with ``d`` the damage ``|eps'(z_t, t, c) - eps(z_t, t,
    c)|^2``, or what ``measure`` gives for encodings, z_t and t; at one (z_t, t) for each target and
    measurement.

    Cost: 2 UNet evaluations (3 for relative damage) for each candidate, target and measurement,
    besides the latents.
    """

    def __init__(
        self,
        scene: Scene,
        names: Sequence[Sequence[str]],
        rows: Sequence[Cond],
        refresh: int,
        measure: Callable[[Cond, Tensor, Tensor], Tensor],
    ) -> None:
        self.scene, self.names, self.rows, self.refresh, self.measure = scene, names, rows, refresh, measure
        self.worst = [0] * len(names)
        self.margin = [0.0] * len(names)

    @torch.no_grad()
    def rank(self, i: int, z: Tensor, t: Tensor) -> None:
        """Find the most damaged candidate of target i, with one latent for each candidate, all at
        one timestep."""
        parts = [
            self.measure(self.rows[i][slice(k, k + CHUNK)], z[k : k + CHUNK], t[k : k + CHUNK])
            for k in range(0, len(self.rows[i]), CHUNK)
        ]
        scores = torch.cat(parts)
        self.worst[i] = int(scores.argmax())
        self.margin[i] = float(scores.max() / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny))

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        if step.index % self.refresh == 0:
            for i, group in enumerate(self.names):
                self.rank(i, *self.scene.latents.common(group, self.rows[i], self.scene.c_anchor, step))
        return rows_of(self.names, self.rows, e, [self.worst[i] for i in e])

    def facts(self, i: int) -> dict[str, float]:
        """By what factor the largest damage exceeds the candidates' mean damage."""
        return {"margin": self.margin[i]}

    def state_dict(self) -> dict[str, Any]:
        return {"worst": self.worst, "margin": self.margin}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.worst, self.margin = list(state["worst"]), list(state["margin"])
