"""The paper's search: logits over the candidates, climbed through a Gumbel-Softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..equations.simplex import entropy, gumbel_noise, gumbel_softmax, largest
from ..models.cond import Cond
from ..training.learned import Learned
from ..training.loop import Step
from ..training.processes import share
from .search import Chosen


class GumbelSearch:
    """``c_a = G(pi) . M_e``: logits per target over its candidates, climbed by Adam (Gumbel-Softmax, straight-through if hard).

    Logits start uniform at 1/n and are kept for the whole run. One optimizer per target: a target that was not drawn must not
    drift by momentum. ``topk`` > 0 and soft: a mixture of so many candidates at most.
    """

    def __init__(
        self, names: Sequence[Sequence[str]], rows: Sequence[Cond], *, tau: float, hard: bool, lr: float, topk: int = 0
    ) -> None:
        self.names, self.rows, self.tau, self.hard, self.topk = names, rows, tau, hard, topk
        self.pi = Learned([torch.full((len(n),), 1 / len(n)) for n in names], lr, maximize=True)

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        noise = [gumbel_noise((len(self.names[i]),), step.rng) for i in e]
        picked = [int((self.pi.values[i].detach() + g).argmax()) for i, g in zip(e, noise, strict=True)]
        mixed = []
        for i, g, j in zip(share(list(e)), share(noise), share(picked), strict=True):
            y = gumbel_softmax(self.pi.values[i], g, self.tau, self.hard)
            y = largest(y, self.topk) if self.topk and not self.hard else y
            mixed.append(self.rows[i].mixture(y, j))
        names = [self.names[i][j] for i, j in zip(e, picked, strict=True)]
        return Chosen(names, Cond.cat(mixed))

    def follow(self, e: Sequence[int]) -> None:
        self.pi.update(e)

    def facts(self, i: int) -> dict[str, float]:
        return {"entropy": float(entropy(self.pi.values[i].detach() / self.tau))}

    def state_dict(self) -> dict[str, Any]:
        return self.pi.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pi.load_state_dict(state)
