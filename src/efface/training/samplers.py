"""The sources of z_t, as values with options of their own: ``sampler=pool``, ``sampler.trajectories=4``."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..models.base import DiffusionModel
from ..options import Settings, option
from .latents import LatentPool, Latents, Trajectories, draw_cost


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How a source walks from noise towards an image, the same for every kind of source."""

    steps: int
    """Levels of the sampling grid."""
    guidance: float
    solver: str
    seed: int
    batch: int
    """Rows of one update, over all processes."""
    targets: Sequence[str]
    others: Sequence[str] = ()
    """Concepts to preserve, which are drawn less often than targets."""
    per_other: int = 1
    """Cached trajectories for each of them."""


@dataclass(frozen=True, kw_only=True)
class Sampler(Settings):
    """Abstract. A final subclass says whose latents are drawn, and what that costs."""

    pooled: ClassVar[bool] = False
    """Whether latents are kept by concept name; such a source cannot serve a mixture of concepts."""

    @property
    def official(self) -> bool:
        """Whether the timestep of z_t is higher than its noise level, as in the legacy codes."""
        return False

    @abc.abstractmethod
    def latents(self, model: DiffusionModel, student: DiffusionModel, walk: Walk) -> Latents:
        """The source of latents for one erasure."""

    @abc.abstractmethod
    def draw_cost(self, groups: int, steps: int) -> float:
        """Mean UNet evaluations per row of drawing latents for ``groups`` conditionings."""

    def fill_cost(self, walk: Walk) -> int:
        """UNet evaluations that are spent once, before the first update."""
        return 0


@dataclass(frozen=True, kw_only=True)
class _Fresh(Sampler):
    """Abstract. A new guided trajectory for every draw."""

    alignment: str = option(
        "exact",
        "noise level of z_t: exact, or official for a timestep that is higher than the level, as in the legacy codes",
        "esd_sd.py exact; legacy codes official",
        choices=("exact", "official"),
    )

    @property
    def official(self) -> bool:
        return self.alignment == "official"

    def _trajectories(self, walker: DiffusionModel, walk: Walk) -> Trajectories:
        return Trajectories(
            walker, steps=walk.steps, guidance=walk.guidance, official=self.official, solver=walk.solver, batch=walk.batch
        )

    def draw_cost(self, groups: int, steps: int) -> float:
        return draw_cost(groups, steps, self.official)


@dataclass(frozen=True, kw_only=True)
class Student(_Fresh):
    """The network that is being trained walks to z_t at every draw, as in the legacy codes."""

    name: ClassVar[str] = "student"

    def latents(self, model: DiffusionModel, student: DiffusionModel, walk: Walk) -> Latents:
        return self._trajectories(student, walk)


@dataclass(frozen=True, kw_only=True)
class Frozen(_Fresh):
    """The frozen model walks to z_t at every draw, as in the newer ESD code."""

    name: ClassVar[str] = "frozen"

    def latents(self, model: DiffusionModel, student: DiffusionModel, walk: Walk) -> Latents:
        return self._trajectories(model, walk)


@dataclass(frozen=True, kw_only=True)
class _Pooled(Sampler):
    """Abstract. Latents that are walked once per concept and drawn many times."""

    pooled: ClassVar[bool] = True

    trajectories: int = option(8, "trajectories kept for each target", "ours", low=1)

    def _pool(self, walker: DiffusionModel, walk: Walk, *, lifetime: int | None = None, forward: bool = False) -> LatentPool:
        return LatentPool(
            walker,
            steps=walk.steps,
            trajectories=walk.per_other,
            more=dict.fromkeys(walk.targets, self.trajectories),
            guidance=walk.guidance,
            solver=walk.solver,
            seed=walk.seed,
            batch=walk.batch,
            lifetime=lifetime,
            forward=forward,
        )

    def draw_cost(self, groups: int, steps: int) -> float:
        return 0.0

    def _rows(self, walk: Walk) -> int:
        others = set(walk.others) - set(walk.targets)
        return self.trajectories * len(walk.targets) + walk.per_other * len(others)


@dataclass(frozen=True, kw_only=True)
class Pool(_Pooled):
    """Latents of the frozen model, walked once per concept: the distribution of Frozen, but a finite number of trajectories."""

    name: ClassVar[str] = "pool"

    def latents(self, model: DiffusionModel, student: DiffusionModel, walk: Walk) -> Latents:
        pool = self._pool(model, walk)
        pool.fill([*walk.targets, *walk.others])
        return pool

    def fill_cost(self, walk: Walk) -> int:
        return 2 * (walk.steps - 1) * self._rows(walk)


@dataclass(frozen=True, kw_only=True)
class Noised(_Pooled):
    """Clean latents of the frozen model, walked once per concept and noised to any timestep at every draw."""

    name: ClassVar[str] = "noised"

    def latents(self, model: DiffusionModel, student: DiffusionModel, walk: Walk) -> Latents:
        pool = self._pool(model, walk, forward=True)
        pool.fill([*walk.targets, *walk.others])
        return pool

    def fill_cost(self, walk: Walk) -> int:
        return 2 * walk.steps * self._rows(walk)


@dataclass(frozen=True, kw_only=True)
class Harvest(_Pooled):
    """Latents of the student, walked again when they are older than ``lifetime`` updates.

    Its cost is not fixed: a concept costs its trajectories again each time that it is drawn and they are too old.
    """

    name: ClassVar[str] = "harvest"

    lifetime: int = option(10, "updates that a trajectory of the student is drawn for before it is walked again", "ours", low=1)

    def latents(self, model: DiffusionModel, student: DiffusionModel, walk: Walk) -> Latents:
        return self._pool(student, walk, lifetime=self.lifetime)


SAMPLERS = (Student, Frozen, Pool, Harvest, Noised)
