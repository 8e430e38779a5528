"""The search of the AP paper: logits over the candidates, moved by gradient ascent through a
Gumbel-Softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..equations.simplex import entropy, gumbel_noise, gumbel_softmax, largest
from ..models.cond import Cond
from ..options import option
from ..training.latents import Group
from ..training.learned import Learned
from ..training.loop import Step
from ..training.processes import share
from ..training.scene import Scene
from .search import AmongCandidates, Chosen, Running


@dataclass(frozen=True, kw_only=True)
class Gumbel(AmongCandidates):
    """Search by gradients: logits of a target's candidates, which ascent moves towards the concept
    with the largest damage."""

    name: ClassVar[str] = "gumbel"
    presets: ClassVar = {"age": {"tau": 0.1, "topk": 5}}
    """The options in which the official code of AGE differs from that of AP."""

    hard: bool = option(
        True, "choose one candidate, not a mixture (straight-through gradient)", "official scripts --gumbel_hard 1"
    )
    topk: int = option(
        0, "largest entries that a mixture keeps, 0 for all", "official AGE --gumbel_topk", low=0, needs="hard=False"
    )
    tau: float = option(2.0, "temperature of the Gumbel-Softmax", "official --gumbel_temp", low=1e-6)
    lr: float = option(1e-2, "Adam learning rate of the logits", "official scripts --gumbel_lr", low=0.0)
    update: str = option(
        "alternate",
        "when the logits move: after the weights (alternate), or by the same backward pass (joint)",
        "official alternate; joint ours",
        choices=("alternate", "joint"),
    )
    ascents: int = option(
        1, "steps of the logits for each weight update", "official pgd_num_steps 2 = one ascent", low=0, needs="update=alternate"
    )

    @property
    def mixes(self) -> bool:
        return not self.hard

    @property
    def joint(self) -> bool:
        return self.update == "joint"

    def begin(self, scene: Scene, names: Sequence[Sequence[str]]) -> GumbelSearch:
        return GumbelSearch(scene, names, [scene.model.encode(n) for n in names], self)

    def evals(
        self, steps: int, batch: int, names: Sequence[Sequence[str]], draw_cost: Callable[[int], float], image_cost: int
    ) -> float:
        return batch * steps * (not self.joint) * self.ascents * (draw_cost(1) + 2)


class GumbelSearch(Running):
    """The searched concept ``c_a = G(pi) . M_e``: pi are a target's logits, M_e its encoded
    candidates, G the Gumbel-Softmax.

    The logits start uniform at 1/n, are kept for the whole run, and are moved by Adam. There is one
    optimizer for each target, so that a target that was not drawn does not drift by momentum. A
    straight-through G is one-hot in the forward pass and soft in the backward pass.
    """

    def __init__(self, scene: Scene, names: Sequence[Sequence[str]], rows: Sequence[Cond], options: Gumbel) -> None:
        self.scene, self.names, self.rows, self.options = scene, names, rows, options
        self.pi = Learned([torch.full((len(n),), 1 / len(n)) for n in names], options.lr, maximize=True)

    def sample(self, e: Sequence[int], step: Step) -> Chosen:
        """A fresh draw of G for every row, differentiable in the logits."""
        noise = [gumbel_noise((len(self.names[i]),), step.rng) for i in e]
        picked = [int((self.pi.values[i].detach() + g).argmax()) for i, g in zip(e, noise, strict=True)]
        mixed = []
        for i, g, j in zip(share(list(e)), share(noise), share(picked), strict=True):
            y = gumbel_softmax(self.pi.values[i], g, self.options.tau, self.options.hard)
            y = largest(y, self.options.topk) if self.options.topk and not self.options.hard else y
            mixed.append(self.rows[i].mixture(y, j))
        names = [self.names[i][j] for i, j in zip(e, picked, strict=True)]
        return Chosen(names, Cond.cat(mixed))

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        chosen = self.sample(e, step)
        return chosen if self.options.joint else Chosen(chosen.names, chosen.fixed())

    def climb(self, step: Step, e: Sequence[int]) -> None:
        """Move the logits up the damage that the weights do now, each time on fresh targets, draws
        and latents.

        No weight collects a gradient. With ``update="joint"`` the update's own backward pass has
        left the gradients.
        """
        if self.options.joint:
            self.follow(e)
            return
        with self.scene.student.frozen():
            for _ in range(self.options.ascents):
                e, _ = self.scene.draw(step)
                chosen = self.sample(e, step)
                (z_a,), t = self.scene.latents.draw([Group(chosen.names, chosen.fixed())], step)
                self.scene.damage(chosen.cond, z_a, t).mean().backward()
                self.follow(e)

    def follow(self, e: Sequence[int]) -> None:
        """One step of the drawn targets' logits up the gradients that a backward pass has left."""
        self.pi.update(e)

    def facts(self, i: int) -> dict[str, float]:
        """The entropy of the choice in nats, which falls as the search decides."""
        return {"entropy": float(entropy(self.pi.values[i].detach() / self.options.tau))}

    def state_dict(self) -> dict[str, Any]:
        return self.pi.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pi.load_state_dict(state)
