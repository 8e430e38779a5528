"""The sources of latents z_t as values with options of their own, such as ``sampler=pool`` with
``sampler.trajectories=4``."""

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
    """How a source walks from noise towards an image. It is the same for every kind of source."""

    steps: int
    """Number of sampler steps of a whole trajectory."""
    guidance: float
    solver: str
    seed: int
    batch: int
    """Rows of one update, over all processes."""
    branches: int
    """UNet evaluations of one row at one sampler step; see :meth:`DiffusionModel.branches`."""
    targets: Sequence[str]
    others: Sequence[str] = ()
    """Concepts to preserve. Each of them is drawn less often than a target."""
    per_other: int = 1
    """Stored trajectories for each concept to preserve."""
    updates: int = 0
    """Number of updates of the whole training."""


@dataclass(frozen=True, kw_only=True)
class Sampler(Settings):
    """Abstract. The options of a source of latents. A final subclass says whose latents are drawn,
    and what that costs."""

    pooled: ClassVar[bool] = False
    """Whether latents are stored by concept name. Such a source has none for a mixture of concepts."""
    bounded: ClassVar[bool] = False
    """Whether :meth:`fill_cost` is an upper bound, because the cost depends on which concepts are drawn."""

    @property
    def official(self) -> bool:
        """Whether the timestep given for z_t is higher than its noise level, as in the legacy
        codes."""
        return False

    @abc.abstractmethod
    def latents(self, model: DiffusionModel, student: DiffusionModel, walk: Walk) -> Latents:
        """The source of latents for one erasure."""

    @abc.abstractmethod
    def draw_cost(self, groups: int, steps: int, branches: int) -> float:
        """Mean UNet evaluations for each row to draw latents for ``groups`` concepts."""

    def fill_cost(self, walk: Walk) -> int:
        """UNet evaluations that are spent on stored latents in the whole training."""
        return 0


@dataclass(frozen=True, kw_only=True)
class _Fresh(Sampler):
    """Abstract. Walk a new guided trajectory for every draw."""

    alignment: str = option(
        "exact",
        "timestep given for z_t: that of its noise level (exact), or a higher one as in the legacy codes (official)",
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

    def draw_cost(self, groups: int, steps: int, branches: int) -> float:
        return draw_cost(groups, steps, self.official, branches)


@dataclass(frozen=True, kw_only=True)
class Student(_Fresh):
    """Draw latents of the network that is trained: it walks to z_t at every draw, as in the legacy
    codes."""

    name: ClassVar[str] = "student"

    def latents(self, model: DiffusionModel, student: DiffusionModel, walk: Walk) -> Latents:
        return self._trajectories(student, walk)


@dataclass(frozen=True, kw_only=True)
class Frozen(_Fresh):
    """Draw latents of the frozen model: it walks to z_t at every draw, as in the newer ESD code."""

    name: ClassVar[str] = "frozen"

    def latents(self, model: DiffusionModel, student: DiffusionModel, walk: Walk) -> Latents:
        return self._trajectories(model, walk)


@dataclass(frozen=True, kw_only=True)
class _Pooled(Sampler):
    """Abstract. Store latents that are walked once for each concept and drawn many times."""

    pooled: ClassVar[bool] = True

    trajectories: int = option(8, "stored trajectories for each target", "ours", low=1)

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

    def draw_cost(self, groups: int, steps: int, branches: int) -> float:
        return 0.0

    def _rows(self, walk: Walk) -> int:
        others = set(walk.others) - set(walk.targets)
        return self.trajectories * len(walk.targets) + walk.per_other * len(others)


@dataclass(frozen=True, kw_only=True)
class Pool(_Pooled):
    """Draw stored latents of the frozen model, walked once for each concept: the distribution of
    Frozen, from finitely many trajectories."""

    name: ClassVar[str] = "pool"

    def latents(self, model: DiffusionModel, student: DiffusionModel, walk: Walk) -> Latents:
        pool = self._pool(model, walk)
        pool.fill([*walk.targets, *walk.others])
        return pool

    def fill_cost(self, walk: Walk) -> int:
        return walk.branches * (walk.steps - 1) * self._rows(walk)


@dataclass(frozen=True, kw_only=True)
class Noised(_Pooled):
    """Draw images of the frozen model as latents, made once for each concept and noised to any
    timestep at every draw."""

    name: ClassVar[str] = "noised"

    def latents(self, model: DiffusionModel, student: DiffusionModel, walk: Walk) -> Latents:
        pool = self._pool(model, walk, forward=True)
        pool.fill([*walk.targets, *walk.others])
        return pool

    def fill_cost(self, walk: Walk) -> int:
        return walk.branches * walk.steps * self._rows(walk)


@dataclass(frozen=True, kw_only=True)
class Harvest(_Pooled):
    """Draw stored latents of the network that is trained, walked again when they are older than
    ``lifetime`` updates.

    The cost is not fixed: a concept costs its trajectories again each time that it is drawn and
    they are too old. What is announced is the most that it can be: every concept, every ``lifetime``
    updates.
    """

    name: ClassVar[str] = "harvest"
    bounded: ClassVar[bool] = True

    lifetime: int = option(10, "updates after which a stored trajectory is walked again", "ours", low=1)

    def latents(self, model: DiffusionModel, student: DiffusionModel, walk: Walk) -> Latents:
        return self._pool(student, walk, lifetime=self.lifetime)

    def fill_cost(self, walk: Walk) -> int:
        return walk.branches * (walk.steps - 1) * self._rows(walk) * -(-walk.updates // self.lifetime)


SAMPLERS = (Student, Frozen, Pool, Harvest, Noised)
