"""The search for the concept that a change hurts most: candidates, logits, cached latents. Shared by AP-type methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .concepts.spaces import ConceptSpace
from .equations.simplex import gumbel_noise, gumbel_softmax
from .models.base import DiffusionModel
from .models.cond import Cond
from .training import Step


def adversarial(choice: Sequence[Tensor], rows: Sequence[Cond], e: Sequence[int]) -> Cond:
    """``c_a = y M_e`` per draw. choice: (n_e,) simplex rows; rows[i].tokens: (n_i, L, d)."""
    tokens = torch.stack([torch.einsum("n,nld->ld", y, rows[i].tokens) for y, i in zip(choice, e, strict=True)])
    return Cond(tokens, torch.stack([rows[i].last[int(y.argmax())] for y, i in zip(choice, e, strict=True)]))


def concept_space(name: str, model: DiffusionModel) -> ConceptSpace:
    """``auto``: the model's own closed world where it has one, else its tokenizer's whole words; else a file."""
    if name == "auto":
        name = "world" if model.concept_names else "vocabulary"
    if name == "world":
        return ConceptSpace.of("world", model.concept_names).require(1)
    if name == "vocabulary":
        return ConceptSpace.of("vocabulary", model.vocabulary())
    return ConceptSpace.from_file(name)


class Logits:
    """pi of every target, and its own Adam. One optimizer per target, so that a target that was not drawn does not drift."""

    def __init__(self, sizes: Sequence[int], lr: float) -> None:
        self.values = [torch.full((n,), 1 / n, requires_grad=True) for n in sizes]
        self.optimizers = [torch.optim.Adam([v], lr=lr, maximize=True) for v in self.values]

    def draw(self, i: int, step: Step, tau: float, hard: bool) -> Tensor:
        v = self.values[i]
        return gumbel_softmax(v, gumbel_noise((len(v),), step.rng), tau, hard)

    def ascend(self, objective: Tensor, used: set[int]) -> None:
        order = sorted(used)
        for i, gradient in zip(order, torch.autograd.grad(objective, [self.values[i] for i in order]), strict=True):
            self.values[i].grad = gradient
            self.optimizers[i].step()
            self.values[i].grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"values": [v.detach() for v in self.values], "optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for v, kept in zip(self.values, state["values"], strict=True):
            v.data.copy_(kept)
        for o, kept_state in zip(self.optimizers, state["optimizers"], strict=True):
            o.load_state_dict(kept_state)


class Pool:
    """Latents of the frozen model at every grid level, ``trajectories`` per concept, from seeds of their own."""

    def __init__(self, model: DiffusionModel, *, steps: int, trajectories: int, guidance: float, seed: int) -> None:
        self.model, self.trajectories, self.guidance, self.seed = model, trajectories, guidance, seed
        self.grid = model.schedule.timesteps(steps)
        self.latents: dict[str, Tensor] = {}

    def fill(self, concepts: Sequence[str]) -> None:
        """Cost: 2 (S - 1) evaluations per concept and trajectory; the last level needs no step beyond it."""
        concepts = list(dict.fromkeys(concepts))
        rng = torch.Generator().manual_seed(self.seed)
        for i in range(0, len(concepts), 16):
            part = concepts[i : i + 16]
            noise = self.model.noise(len(part) * self.trajectories, rng)
            c = self.model.encode(part).repeat(self.trajectories)
            walk = self.model.walk(c, noise, self.grid[:-1], self.guidance, final=self.grid[-1])
            states = torch.stack([z for _, z in walk], dim=1)  # (n * trajectories, S, C, h, w)
            for name, z in zip(part, states.split(self.trajectories), strict=True):
                self.latents[name] = z

    def latents_of(self, concepts: Sequence[str], levels: Sequence[int], step: Step) -> Tensor:
        """(B, C, h, w): a random trajectory of each concept at the given level."""
        return torch.stack([self.latents[c][step.randint(self.trajectories), k] for c, k in zip(concepts, levels, strict=True)])

    def timesteps(self, levels: Sequence[int]) -> Tensor:
        return torch.tensor([self.grid[k] for k in levels], device=self.model.device)
