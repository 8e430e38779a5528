"""What every search for the concept to preserve promises, and what several of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..models.cond import Cond
from ..training.loop import Step
from ..training.processes import share


@dataclass(frozen=True)
class Chosen:
    """Concepts to preserve. ``names``: of the whole batch; ``cond``: this process's rows, with gradient where it has one."""

    names: list[str]
    cond: Cond

    def fixed(self) -> Cond:
        return self.cond.detached()


class Search(Protocol):
    """``e``: target index of every row of the whole batch."""

    def choose(self, e: Sequence[int], step: Step) -> Chosen: ...
    def facts(self, i: int) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Climbing(Search, Protocol):
    """A search that gradients move."""

    def follow(self, e: Sequence[int]) -> None:
        """One ascent for the drawn targets, with the gradients that a backward pass of the damage has left behind."""


class Still:
    """What keeps no state and tells nothing."""

    def facts(self, i: int) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def rows_of(names: Sequence[Sequence[str]], rows: Sequence[Cond], e: Sequence[int], picked: Sequence[int]) -> Chosen:
    own = [rows[i][j] for i, j in zip(share(list(e)), share(list(picked)), strict=True)]
    return Chosen([names[i][j] for i, j in zip(e, picked, strict=True)], Cond.cat(own))
