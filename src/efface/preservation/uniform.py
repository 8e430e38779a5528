"""The control of all searches: every candidate is as likely as the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..models.cond import Cond
from ..training.loop import Step
from ..training.scene import Scene
from .search import AmongCandidates, Chosen, Running, rows_of


@dataclass(frozen=True, kw_only=True)
class Random(AmongCandidates):
    """Preserve any candidate, each as likely as the others. This control shows what searching is
    worth."""

    name: ClassVar[str] = "random"

    def begin(self, scene: Scene, names: Sequence[Sequence[str]]) -> Running:
        return UniformSearch(names, [scene.model.encode(n) for n in names])


class UniformSearch(Running):
    """Every candidate is as likely as the others. With one candidate, the concept is fixed."""

    def __init__(self, names: Sequence[Sequence[str]], rows: Sequence[Cond]) -> None:
        self.names, self.rows = names, rows

    def choose(self, e: Sequence[int], step: Step) -> Chosen:
        picked = [step.randint(len(self.names[i])) for i in e]
        return rows_of(self.names, self.rows, e, picked)
