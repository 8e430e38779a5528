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
DRAWN_TOGETHER = 16
"""Number of candidates whose images are drawn in one batch."""


@dataclass(frozen=True, kw_only=True)
class Exhaustive(AmongCandidates):
    """Preserve the candidate with the largest damage of all, measured again every ``refresh``
    updates. ``by`` says what damage is: of a prediction (:meth:`Scene.damage`), this as a share of
    the candidate's own reach (:meth:`Scene.relative_damage`), or of a finished image
    (:meth:`Scene.image_damage`)."""

    name: ClassVar[str] = "exhaustive"

    refresh: int = option(10, "updates between two measurements of all candidates", "ours", low=1)

    by: str = option(
        "damage",
        "what is compared between the trained and the frozen model: a candidate's prediction (damage), the change of it as a "
        "share of its distance from that for the empty prompt (relative), or the clean latents of an image from the same noise "
        "(images)",
        "ours",
        choices=("damage", "relative", "images"),
    )

    def begin(self, scene: Scene, names: Sequence[Sequence[str]]) -> Running:
        return ExhaustiveSearch(scene, names, [scene.model.encode(n) for n in names], self.refresh, self.by)

    def evals(
        self, steps: int, batch: int, names: Sequence[Sequence[str]], draw_cost: Callable[[int], float], image_cost: int
    ) -> float:
        looks, candidates = -(-steps // self.refresh), sum(map(len, names))
        if self.by == "images":
            return looks * 2 * image_cost * candidates
        return looks * (draw_cost(1) * len(names) + (3 if self.by == "relative" else 2) * candidates)


class ExhaustiveSearch(Running):
    """The candidate ``c_a = argmax_c d(c)`` with ``d`` the damage ``|eps'(z_t, t, c) - eps(z_t, t,
    c)|^2``, or what ``by`` asks for instead; at one (z_t, t), or from one start noise, for each
    target and measurement.

    Cost: 2 UNet evaluations (3 for relative damage) for each candidate, target and measurement,
    besides the latents; two images for each with ``by="images"``.
    """

    def __init__(
        self, scene: Scene, names: Sequence[Sequence[str]], rows: Sequence[Cond], refresh: int, by: str = "damage"
    ) -> None:
        self.scene, self.names, self.rows, self.refresh, self.by = scene, names, rows, refresh, by
        self.worst = [0] * len(names)
        self.margin = [0.0] * len(names)

    @torch.no_grad()
    def rank(self, i: int, step: Step) -> None:
        """Find the most damaged candidate of target i, all at one timestep or from one start noise."""
        scores = self.damages(i, step)
        self.worst[i] = int(scores.argmax())
        self.margin[i] = float(scores.max() / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny))

    def damages(self, i: int, step: Step) -> Tensor:
        """(n,) The damage of each candidate of target i."""
        scene, rows, images = self.scene, self.rows[i], self.by == "images"
        size = DRAWN_TOGETHER if images else CHUNK
        parts = [slice(k, k + size) for k in range(0, len(rows), size)]
        if images:
            noise = scene.model.noise(1, step.rng)
            return torch.cat([scene.image_damage(rows[part], noise) for part in parts])
        measure = scene.relative_damage if self.by == "relative" else scene.damage
        z, t = scene.latents.common(self.names[i], rows, scene.c_anchor, step)
        return torch.cat([measure(rows[part], z[part], t[part]) for part in parts])

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        if step.index % self.refresh == 0:
            for i in range(len(self.names)):
                self.rank(i, step)
        return rows_of(self.names, self.rows, e, [self.worst[i] for i in e])

    def facts(self, i: int) -> dict[str, float]:
        """By what factor the largest damage exceeds the candidates' mean damage."""
        return {"margin": self.margin[i]}

    def state_dict(self) -> dict[str, Any]:
        return {"worst": self.worst, "margin": self.margin}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.worst, self.margin = list(state["worst"]), list(state["margin"])
