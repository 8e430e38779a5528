"""The search that does not search: every candidate alike."""

from __future__ import annotations

from collections.abc import Sequence

from ..models.cond import Cond
from ..training.loop import Step
from .search import Chosen, Still, rows_of


class UniformSearch(Still):
    """Every candidate alike: the control that isolates the value of searching. With one candidate: a fixed concept."""

    def __init__(self, names: Sequence[Sequence[str]], rows: Sequence[Cond]) -> None:
        self.names, self.rows = names, rows

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        picked = [step.randint(len(self.names[i])) for i in e]
        return rows_of(self.names, self.rows, e, picked)
