"""Sources of the latents ``(z_t, t)`` that methods train on: fresh trajectories, or a pool of
stored latents.

A trajectory is the series of latents along which the sampler goes from noise to an image; to walk
one is to compute it. All sources answer the same question: for groups of B concepts (the targets,
the concepts to preserve, ...) they give one latent for each row at one noise level for each row.
The level and the start noise are the same in every group.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..models.schedule import mean_walk
from .loop import Step
from .processes import share


@dataclass(frozen=True)
class Group:
    """B concepts to draw latents for: the ``names`` of the whole batch, and the encodings ``cond``
    of this process's rows."""

    names: Sequence[str]
    cond: Cond


class Latents(Protocol):
    """A source of latents. What it stores survives an interruption."""

    def draw(self, groups: Sequence[Group], step: Step) -> tuple[list[Tensor], Tensor]:
        """One ``z_t`` (B, C, h, w) for each group, and their common ``t`` (B,)."""

    def common(self, names: Sequence[str], cond: Cond, neutral: Cond, step: Step) -> tuple[Tensor, Tensor]:
        """``z_t`` and ``t`` for n candidates, all at one noise level, to compare the candidates
        with each other."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trajectories:
    """Walk a new guided trajectory for every draw, from fresh noise down to one random level of the
    grid, all groups in one batch.

    Cost: for each draw and row of g groups, 2 g k UNet evaluations for k sampler steps, less the g
    - 1 unconditional ones that the first step shares; g k without guidance.
    """

    def __init__(self, walker: DiffusionModel, *, steps: int, guidance: float, official: bool, solver: str, batch: int) -> None:
        self.walker, self.steps, self.guidance, self.official, self.solver = walker, steps, guidance, official, solver
        self.batch = batch

    def draw(self, groups: Sequence[Group], step: Step) -> tuple[list[Tensor], Tensor]:
        """Latents for each group. The number of sampler steps is added to the step's log as an
        entry of ``k``."""
        stride = self.walker.schedule.size // self.steps
        k, jitter = step.randint(self.steps), step.randint(stride) if self.official else 0
        step.log(k=[*step.logged.get("k", []), k])
        cond, noise = Cond.cat([g.cond for g in groups]), share(self.walker.noise(self.batch, step.rng))
        z, t = self.walker.sample_until(cond, k, self.steps, noise, self.guidance, self.official, jitter, self.solver)
        parts = list(z.chunk(len(groups)))
        return parts, t[: len(parts[0])]

    def common(self, names: Sequence[str], cond: Cond, neutral: Cond, step: Step) -> tuple[Tensor, Tensor]:
        """One latent of the neutral prompt, given to all candidates. Cost: k sampler steps."""
        k, noise = step.randint(self.steps), self.walker.noise(1, step.rng)
        step.log(common_k=[*step.logged.get("common_k", []), k])
        z, t = self.walker.sample_until(neutral, k, self.steps, noise, self.guidance, solver=self.solver)
        return z.expand(len(cond), -1, -1, -1), t.expand(len(cond))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class LatentPool:
    """Store latents by concept name at every level of the grid, and draw from them.

    Each concept has ``trajectories`` trajectories, or as many as ``more`` says, each from a seed of
    its own. Where ``walker`` is the frozen model, the pool is filled once and has the distribution
    of its :class:`Trajectories`, up to their number; rows of a batch have levels of their own.
    Options for other pools:

    - ``lifetime``: ``walker`` is the student. A concept's trajectories serve for that many updates
      and are then walked again by the student as it is ("harvest").
    - ``forward``: only clean latents are stored, and noised to any of the T timesteps.
    - ``levels``: only so many levels of the grid, from the noisiest, are walked and drawn.
    - ``after``: what is stored for a level is the latent after the sampler step that leaves it, as
      some official codes do. It is one step cleaner than its t says.

    Cost: 2 (S - 1) UNet evaluations for each trajectory to fill, 2 S with ``forward`` or ``after``,
    and half of that without guidance. Drawing is free.
    """

    ROWS = 32  # number of trajectories that are walked in one batch

    def __init__(
        self,
        walker: DiffusionModel,
        *,
        steps: int,
        trajectories: int,
        guidance: float,
        solver: str,
        seed: int,
        batch: int,
        lifetime: int | None = None,
        forward: bool = False,
        more: Mapping[str, int] | None = None,
        levels: int | None = None,
        after: bool = False,
    ) -> None:
        self.walker, self.trajectories, self.guidance, self.solver = walker, trajectories, guidance, solver
        self.seed, self.batch, self.lifetime, self.forward, self.more = seed, batch, lifetime, forward, more or {}
        self.grid, self.after = walker.schedule.timesteps(steps)[:levels], after
        # Where the step from the last level leads.
        self.beyond = [*walker.schedule.timesteps(steps), walker.schedule.end][len(self.grid)]
        self.latents: dict[str, Tensor] = {}
        self.born: dict[str, int] = {}

    def size(self, name: str) -> int:
        """How many trajectories this concept has."""
        return self.more.get(name, self.trajectories)

    def fill(self, concepts: Sequence[str], now: int = 0) -> None:
        """Walk the trajectories of the concepts that are missing or too old."""
        missing = [c for c in dict.fromkeys(concepts) if c not in self.latents or self._old(c, now)]
        rows = [(name, z) for name in missing for z in self.walker.noise(self.size(name), self._rng(name, now)).split(1)]
        grown: dict[str, list[Tensor]] = {name: [] for name in missing}
        for i in range(0, len(rows), self.ROWS):
            names, noise = zip(*rows[i : i + self.ROWS], strict=True)
            c = self.walker.encode(names)
            levels, final = (self.grid, self.beyond) if self.forward or self.after else (self.grid[:-1], self.grid[-1])
            states = [z for _, z in self.walker.walk(c, torch.cat(noise), levels, self.guidance, final, self.solver)]
            kept = torch.stack(states[-1 if self.forward else int(self.after) :], dim=1)  # (rows, levels, C, h, w)
            for name, z in zip(names, kept, strict=True):
                grown[name].append(z)
        for name, parts in grown.items():
            self.latents[name], self.born[name] = torch.stack(parts), now

    def add_predictions(self, name: str, asked: Sequence[tuple[DiffusionModel, str]]) -> None:
        """Store, beside every latent of a concept, what each network predicts for each prompt
        there.

        The predictions become further channels in this order. Cost: 1 UNet evaluation for each
        latent and pair.
        """
        z = self.latents[name]  # (trajectories, levels, C, h, w)
        t = torch.tensor(self.grid, device=z.device)
        with torch.no_grad():
            found = [torch.stack([network.predict(row, t, network.encode([p] * len(t))) for row in z]) for network, p in asked]
        self.latents[name] = torch.cat([z, *found], dim=2)

    def _old(self, name: str, now: int) -> bool:
        return self.lifetime is not None and now - self.born[name] >= self.lifetime

    def _rng(self, name: str, now: int) -> torch.Generator:
        """Random numbers that depend on the name, so that a trajectory does not depend on what else
        is in the pool."""
        told = hashlib.sha256(f"{self.seed} {now} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(told[:7], "big"))

    def draw(self, groups: Sequence[Group], step: Step) -> tuple[list[Tensor], Tensor]:
        self.fill([name for g in groups for name in g.names], step.index)
        # All groups share one draw, so names with equally many trajectories get the same one. Every size divides the modulus.
        sizes = {self.size(name) for g in groups for name in g.names}
        which = share(step.draw(math.lcm(*sizes), self.batch))
        level, t = self._levels(share(step.draw(self.depth, self.batch)))
        noise = share(self.walker.noise(self.batch, step.rng)) if self.forward else None
        parts = []
        for g in groups:
            z = torch.stack(
                [self.latents[n][i % self.size(n), k] for n, i, k in zip(share(list(g.names)), which, level, strict=True)]
            )
            parts.append(z if noise is None else self.walker.schedule.noised(z, noise, t))
        return parts, t

    def common(self, names: Sequence[str], cond: Cond, neutral: Cond, step: Step) -> tuple[Tensor, Tensor]:
        """Every candidate's own latent, all of the same trajectory number and level."""
        self.fill(names, step.index)
        i, level, t = step.randint(math.lcm(*map(self.size, names))), *self._levels([step.randint(self.depth)])
        z = torch.stack([self.latents[name][i % self.size(name), level[0]] for name in names])
        if self.forward:
            z = self.walker.schedule.noised(z, self.walker.noise(1, step.rng), t)
        return z, t.expand(len(z))

    @property
    def depth(self) -> int:
        """How many levels can be drawn."""
        return self.walker.schedule.size if self.forward else len(self.grid)

    def _levels(self, drawn: Sequence[int]) -> tuple[list[int], Tensor]:
        """For every drawn level, its index among the stored latents, and its timestep."""
        if self.forward:
            return [0] * len(drawn), self.walker.schedule.numbered(drawn, self.walker.device)
        return list(drawn), torch.tensor([self.grid[k] for k in drawn], device=self.walker.device)

    def state_dict(self) -> dict[str, Any]:
        """Only what the student drew. A pool of the frozen model comes out the same when it is
        filled again."""
        return {"latents": self.latents, "born": self.born} if self.lifetime is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.latents = {n: z.to(self.walker.device) for n, z in state.get("latents", {}).items()} or self.latents
        self.born = state.get("born") or self.born


def draw_cost(groups: int, steps: int, official: bool, branches: int = 2) -> float:
    """Mean UNet evaluations for each row of one draw of :class:`Trajectories`, with a level uniform
    on 0 .. steps - 1 and ``branches`` evaluations in a sampler step."""
    walks = 1.0 if official else (steps - 1) / steps  # share of levels that need at least one step
    return branches * groups * mean_walk(steps, official) - (branches - 1) * (groups - 1) * walks
