"""A search without candidates: a free embedding, moved by normalised gradient ascent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ..concepts.request import EraseRequest
from ..equations.steps import into_ball, normalised_ascent
from ..models.base import DiffusionModel
from ..options import option
from ..training.latents import Group
from ..training.learned import collected
from ..training.loop import Step
from ..training.processes import share
from ..training.scene import Scene
from .search import Chosen, Running, Search


@dataclass(frozen=True, kw_only=True)
class PGD(Search):
    """Search without candidates: a free embedding starts at the target's and climbs the damage on
    the target's own latents.

    This is as in the official code. The authors report that it collapses; so does ours, and it is
    here to show that.
    """

    name: ClassVar[str] = "pgd"
    groups: ClassVar[int] = 1
    keeps_names: ClassVar[bool] = False

    rate: float = option(1e-3, "length of a step, as a share of |c_a|", "ours; official --pgd_lr 1e-5", low=0.0)
    radius: float = option(0.0, "largest distance from the target, as a share of |c_e|; 0 for none", "official: none", low=0.0)
    update: str = option(
        "alternate",
        "when the embedding moves: after the weights (alternate), or by the same backward pass (joint)",
        "official alternate; joint ours",
        choices=("alternate", "joint"),
    )
    ascents: int = option(
        1, "steps of the embedding for each weight update", "official pgd_num_steps 100", low=0, needs="update=alternate"
    )

    def candidates(self, model: DiffusionModel, request: EraseRequest) -> list[tuple[str, ...]]:
        """The target itself, where the embedding starts."""
        return [(target,) for target in request.targets]

    def begin(self, scene: Scene, names: Sequence[Sequence[str]]) -> PgdSearch:
        return PgdSearch(scene, self)

    def evals(
        self, steps: int, batch: int, names: Sequence[Sequence[str]], draw_cost: Callable[[int], float], image_cost: int
    ) -> float:
        draws = min(self.ascents, 1) * draw_cost(1)
        return batch * steps * (self.update == "alternate") * (draws + 2 * self.ascents)


class PgdSearch(Running):
    """A free embedding p for each target, which starts at c_e and climbs by steps of length ``rate
    |p|``.

    ``radius`` > 0 projects it back to within ``radius |c_e|`` of the target. The official code,
    despite its name, does not.
    """

    def __init__(self, scene: Scene, options: PGD) -> None:
        self.scene, self.options = scene, options
        self.points = [row.clone().requires_grad_(True) for row in scene.c_targets.tokens]

    def sample(self, e: Sequence[int]) -> Chosen:
        """The embeddings of every row's target as they are now, differentiable."""
        own = share(list(e))
        c = replace(self.scene.c_targets[list(own)], tokens=torch.stack([self.points[i] for i in own]))
        return Chosen([self.scene.targets[i] for i in e], c)

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        chosen = self.sample(e)
        return chosen if self.options.update == "joint" else Chosen(chosen.names, chosen.fixed())

    def groups(self, target: Group, chosen: Chosen) -> list[Group]:
        return [target]

    def climb(self, step: Step, e: Sequence[int]) -> None:
        """Take all steps on one fresh draw of targets and latents. No weight collects a gradient."""
        if self.options.update == "joint":
            self.follow(e)
        elif self.options.ascents:
            with self.scene.student.frozen():
                e, target = self.scene.draw(step)
                (z_a,), t = self.scene.latents.draw([target], step)
                for _ in range(self.options.ascents):
                    self.scene.damage(self.sample(e).cond, z_a, t).mean().backward()
                    self.follow(e)

    def follow(self, e: Sequence[int]) -> None:
        """One step of the drawn targets' embeddings up the gradients that a backward pass has left."""
        for i, gradient in collected(self.points, e).items():
            p, origin = self.points[i], self.scene.c_targets.tokens[i]
            moved = normalised_ascent(p.detach()[None], gradient[None], self.options.rate)
            p.data = (into_ball(moved, origin[None], self.options.radius) if self.options.radius else moved)[0]

    def facts(self, i: int) -> dict[str, float]:
        """How far the embedding has moved, as a share of the target's norm."""
        c = self.scene.c_targets.tokens[i]
        return {"moved": float((self.points[i].detach() - c).norm() / c.norm())}

    def state_dict(self) -> dict[str, Any]:
        return {"points": [p.detach() for p in self.points]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for p, kept in zip(self.points, state["points"], strict=True):
            p.data.copy_(kept)
