"""Where ``(z_t, t)`` comes from: trajectories of the student or of the frozen model, or a pool of the frozen model's latents.

All sources answer the same question: for groups of B conditionings (the targets, the concepts to preserve, ...), one latent per
row at one noise level per row, the level and the start noise shared between the groups.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..models.base import DiffusionModel, mean_walk
from ..models.cond import Cond
from .loop import Step
from .processes import share


@dataclass(frozen=True)
class Group:
    """B conditionings to draw latents for. ``names``: of the whole batch; ``cond``: this process's rows."""

    names: Sequence[str]
    cond: Cond


class Latents(Protocol):
    """A source of latents; what it keeps survives an interruption."""

    def draw(self, groups: Sequence[Group], step: Step) -> tuple[list[Tensor], Tensor]:
        """One ``z_t`` (B, C, h, w) per group, and their common ``t`` (B,)."""

    def common(self, names: Sequence[str], cond: Cond, neutral: Cond, step: Step) -> tuple[Tensor, Tensor]:
        """``z_t`` and ``t`` for n candidates at one level, to compare them with each other."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trajectories:
    """Guided trajectories from fresh noise down to one random grid level per draw, all groups in one batch.

    Cost per draw and row of g groups: 2 g k evaluations, less the g - 1 unconditional ones that the first step shares.
    """

    def __init__(self, walker: DiffusionModel, *, steps: int, guidance: float, official: bool, solver: str, batch: int) -> None:
        self.walker, self.steps, self.guidance, self.official, self.solver = walker, steps, guidance, official, solver
        self.batch = batch

    def draw(self, groups: Sequence[Group], step: Step) -> tuple[list[Tensor], Tensor]:
        """Logs the level as one more entry of ``k``."""
        stride = self.walker.schedule.size // self.steps
        k, jitter = step.randint(self.steps), step.randint(stride) if self.official else 0
        step.log(k=[*step.logged.get("k", []), k])
        cond, noise = Cond.cat([g.cond for g in groups]), share(self.walker.noise(self.batch, step.rng))
        z, t = self.walker.sample_until(cond, k, self.steps, noise, self.guidance, self.official, jitter, self.solver)
        parts = list(z.chunk(len(groups)))
        return parts, t[: len(parts[0])]

    def common(self, names: Sequence[str], cond: Cond, neutral: Cond, step: Step) -> tuple[Tensor, Tensor]:
        """One latent of the neutral prompt for all candidates. Cost: 2 k evaluations."""
        k, noise = step.randint(self.steps), self.walker.noise(1, step.rng)
        step.log(common_k=[*step.logged.get("common_k", []), k])
        z, t = self.walker.sample_until(neutral, k, self.steps, noise, self.guidance, solver=self.solver)
        return z.expand(len(cond), -1, -1, -1), t.expand(len(cond))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class LatentPool:
    """Latents by concept name at every grid level, each trajectory from a seed of its own: ``trajectories`` per concept, or as
    many as ``more`` says for the concepts that are drawn most.

    ``walker`` frozen: filled once, the exact distribution of ``Trajectories`` of the frozen model (batch rows have levels of
    their own). ``walker`` the student and a ``lifetime``: a concept's trajectories serve that many updates and are then walked
    again by the student as it is ("harvest"). ``forward``: only clean latents are kept, and noised to any of the T levels.
    ``levels``: of the S of the grid only so many from the noisiest are walked and drawn. ``after``: what is kept for a level is
    the latent after the step that leaves it, as some official codes store it; it is one step cleaner than its t says.
    Cost: 2 (S - 1) evaluations per trajectory to fill, 2 S with ``forward`` or ``after``, half without guidance; drawing is free.
    """

    ROWS = 32  # trajectories walked in one batch

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
        """Walk the trajectories of concepts that are missing or too old."""
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
        """Keep what each network predicts for each prompt at every latent of a concept beside it, as further channels in this
        order. Cost: 1 evaluation per latent and pair."""
        z = self.latents[name]  # (trajectories, levels, C, h, w)
        t = torch.tensor(self.grid, device=z.device)
        with torch.no_grad():
            found = [torch.stack([network.predict(row, t, network.encode([p] * len(t))) for row in z]) for network, p in asked]
        self.latents[name] = torch.cat([z, *found], dim=2)

    def _old(self, name: str, now: int) -> bool:
        return self.lifetime is not None and now - self.born[name] >= self.lifetime

    def _rng(self, name: str, now: int) -> torch.Generator:
        """By name, so that a trajectory does not depend on what else is in the pool."""
        told = hashlib.sha256(f"{self.seed} {now} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(told[:7], "big"))

    def draw(self, groups: Sequence[Group], step: Step) -> tuple[list[Tensor], Tensor]:
        self.fill([name for g in groups for name in g.names], step.index)
        # One draw for all groups: names with equally many trajectories get the same one. Every size divides the modulus.
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
        """Every candidate's own latent, all of the same trajectory and level."""
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
        """Index into the kept latents and timestep of every drawn level."""
        if self.forward:
            return [0] * len(drawn), self.walker.schedule.numbered(drawn, self.walker.device)
        return list(drawn), torch.tensor([self.grid[k] for k in drawn], device=self.walker.device)

    def state_dict(self) -> dict[str, Any]:
        """Only what the student drew: a frozen pool is the same when it is filled again."""
        return {"latents": self.latents, "born": self.born} if self.lifetime is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.latents = {n: z.to(self.walker.device) for n, z in state.get("latents", {}).items()} or self.latents
        self.born = state.get("born") or self.born


def draw_cost(groups: int, steps: int, official: bool) -> float:
    """Mean evaluations per row of one draw of :class:`Trajectories`, its level uniform on 0 .. steps - 1."""
    walks = 1.0 if official else (steps - 1) / steps  # share of levels that need at least one step
    return 2 * groups * mean_walk(steps, official) - (groups - 1) * walks
