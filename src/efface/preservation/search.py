"""How the concept to preserve is found: what every kind of search does, and what several kinds
share.

A search is two things: a set of options, such as ``Gumbel(tau=2.0)``, and the running search that
:meth:`Search.begin` makes of it, which keeps its logits or embeddings for one erasure.
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
    """Concepts to preserve: the ``names`` of the whole batch, and the encodings ``cond`` of this
    process's rows.

    The encodings carry a gradient where they have one.
    """

    names: list[str]
    cond: Cond

    def fixed(self) -> Cond:
        """The encodings without gradient."""
        return self.cond.detached()


class Running(abc.ABC):
    """A running search. ``e`` are the target indices of all rows of the whole batch."""

    @abc.abstractmethod
    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        """The concepts to preserve in this update, with a gradient only where the search moves
        together with the weights."""

    def climb(self, step: Step, e: Sequence[int]) -> None:  # noqa: B027  # most searches have nothing to do
        """What the search does after the weights have moved. A search without gradients does
        nothing."""

    def groups(self, target: Group, chosen: Chosen) -> list[Group]:
        """What latents are drawn for: the targets, then the concepts to preserve where these have
        latents of their own."""
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
    """How many concepts need latents of their own in one update: the target, and the concept to preserve."""
    keeps_names: ClassVar[bool] = True
    """Whether the search chooses from a list of candidate names."""

    @property
    def mixes(self) -> bool:
        """Whether what is chosen may be a mixture of candidates, for which a pool has no latents."""
        return False

    @property
    def joint(self) -> bool:
        """Whether the search moves by the backward pass of the update itself."""
        return False

    @abc.abstractmethod
    def candidates(self, model: DiffusionModel, request: EraseRequest) -> list[tuple[str, ...]]:
        """The names that may be preserved, for each target."""

    @abc.abstractmethod
    def begin(self, scene: Scene, names: Sequence[Sequence[str]]) -> Running:
        """Start the search for one erasure. ``names`` are the candidates of each target."""

    def evals(
        self, steps: int, batch: int, names: Sequence[Sequence[str]], draw_cost: Callable[[int], float], image_cost: int
    ) -> float:
        """UNet evaluations of the search in a whole run, besides those of the updates. ``draw_cost``: of
        latents for a number of concepts; ``image_cost``: of one image."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class AmongCandidates(Search):
    """Abstract. A search among the names of a concept space that are nearest to the target."""

    space: str = option(
        "auto",
        "concept space to choose from: auto, world, english, vocabulary, or a file of names",
        "officially 3,000 English words",
    )
    nearest: int = option(
        100, "number of candidates, the names nearest to each target", "official --gumbel_k_closest 1000, then 100 centres", low=1
    )
    centres: int = option(
        0, "number of candidates that the nearest are thinned to, 0 for all", "official --gumbel_num_centers 100", low=0
    )
    metric: str = option(
        "cosine",
        "how the distance of two names' text encodings is measured, by which the nearest candidates are chosen",
        "paper cosine; official code l2",
        choices=("cosine", "l2"),
    )
    apart: float = option(0.0, "names closer to a target than this are no candidates", "ours", low=0.0)
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
    """The picked candidate of every row's target. ``rows`` are the encoded candidates of each
    target, ``picked`` an index for each row."""
    own = [rows[i][j] for i, j in zip(share(list(e)), share(list(picked)), strict=True)]
    return Chosen([names[i][j] for i, j in zip(e, picked, strict=True)], Cond.cat(own))
