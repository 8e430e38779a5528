"""How the concept to preserve is found: what every kind of search promises, and what several kinds share.

A search is two things: a set of options, such as ``Gumbel(tau=2.0)``, and the running search that :meth:`Search.begin` makes of
it, which keeps logits or embeddings for the length of one erasure.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..concepts.request import EraseRequest
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..options import Settings, option
from ..training.latents import Group
from ..training.loop import Step
from ..training.processes import share
from ..training.scene import Scene
from .candidates import candidates


@dataclass(frozen=True)
class Chosen:
    """Concepts to preserve. ``names``: of the whole batch; ``cond``: this process's rows, with gradient where it has one."""

    names: list[str]
    cond: Cond

    def fixed(self) -> Cond:
        return self.cond.detached()


class Running(abc.ABC):
    """A search at work. ``e``: target index of every row of the whole batch."""

    @abc.abstractmethod
    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        """The concepts to preserve in this update; with gradient only where the search moves together with the weights."""

    def climb(self, step: Step, e: Sequence[int]) -> None:  # noqa: B027  # most searches have nothing to do
        """What the search does after the weights have moved; nothing, for a search that gradients do not move."""

    def groups(self, target: Group, chosen: Chosen) -> list[Group]:
        """What latents are drawn for: the targets, then the concepts to preserve where they have latents of their own."""
        return [target, Group(chosen.names, chosen.fixed())]

    def facts(self, i: int) -> dict[str, float]:
        """What the log of an update says about the search for target i."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  # nothing was kept
        """Go on from what :meth:`state_dict` gave."""


@dataclass(frozen=True, kw_only=True)
class Search(Settings):
    """Abstract. The options of one kind of search."""

    groups: ClassVar[int] = 2
    """Conditionings that need latents of their own in one update: the target, and the concept to preserve."""
    keeps_names: ClassVar[bool] = True
    """Whether what is chosen is one of a list of candidate names."""

    @property
    def mixes(self) -> bool:
        """Whether what is chosen may be a mixture of candidates, for which a pool has no latents."""
        return False

    @abc.abstractmethod
    def candidates(self, model: DiffusionModel, request: EraseRequest) -> list[tuple[str, ...]]:
        """The names that may be preserved, per target."""

    @abc.abstractmethod
    def begin(self, scene: Scene, names: Sequence[Sequence[str]]) -> Running:
        """The search at work for one erasure. ``names``: the candidates per target."""

    def evals(self, steps: int, batch: int, names: Sequence[Sequence[str]], draw_cost: Callable[[int], float]) -> float:
        """UNet evaluations of the search in a whole run, beside those of the update itself."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class AmongCandidates(Search):
    """Abstract. A search among the names of a concept space that are nearest to the target."""

    space: str = option(
        "auto", "concept space: auto, world, english, vocabulary, or a file of names", "officially 3,000 English words"
    )
    nearest: int = option(100, "candidates kept around each target", "official --gumbel_k_closest 1000, then 100 centres", low=1)
    centres: int = option(
        0, "number of candidates that the nearest are thinned to, 0: all", "official --gumbel_num_centers 100", low=0
    )
    metric: str = option("cosine", "distance of candidates", "paper cosine; official code l2", choices=("cosine", "l2"))
    apart: float = option(0.0, "smallest distance of a candidate to the target, against near-synonyms; 0: none", "ours", low=0.0)
    exclude_targets: bool = option(True, "leave the targets out of the candidates", "paper; official code forgets")

    def candidates(self, model: DiffusionModel, request: EraseRequest) -> list[tuple[str, ...]]:
        return candidates(
            model,
            self.space,
            request.targets,
            exclude_targets=self.exclude_targets,
            nearest=self.nearest,
            metric=self.metric,
            centres=self.centres,
            apart=self.apart,
            always=request.preserve,
        )


def rows_of(names: Sequence[Sequence[str]], rows: Sequence[Cond], e: Sequence[int], picked: Sequence[int]) -> Chosen:
    """The picked candidate of every row's target. ``rows``: encoded candidates per target; ``picked``: an index per row."""
    own = [rows[i][j] for i, j in zip(share(list(e)), share(list(picked)), strict=True)]
    return Chosen([names[i][j] for i, j in zip(e, picked, strict=True)], Cond.cat(own))
