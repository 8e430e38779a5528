"""What a method is: a frozen dataclass of hyper-parameters and one ``erase`` body."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..concepts.request import EraseRequest
from ..models.base import DiffusionModel
from ..options import Settings, option
from ..patches import Patch, PatchCard
from ..training.loop import Run
from ..versions import versions

__all__ = ["Method", "option"]


@dataclass(frozen=True, kw_only=True)
class Method(Settings):
    """Abstract. A final subclass states its equation, deviations and cost in its docstring and fills ``erase``.

    ``presets`` names sets of options: "paper" is the default of full-size models; "mini" and "tiny" are ours.
    """

    summary: ClassVar[str]
    paper: ClassVar[str]

    @abc.abstractmethod
    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        """The change that erases ``request.targets``. Never changes ``model``; same seed, same bits."""

    @abc.abstractmethod
    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        """Documented cost: expected UNet forward evaluations of ``erase``."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What it asks of a model beyond predicting and encoding: names of :data:`efface.models.capabilities.CAPABILITIES`."""
        return ()

    def check(self, model: DiffusionModel) -> None:
        """Raises BadOption, with the reason, for a model that lacks what the method needs; to be called before any compute."""
        model.require(self.label, self.needs)

    @property
    def label(self) -> str:
        """What tables and cards call this configuration; variants that deserve a name of their own give it here."""
        return self.name

    def card(self, model: DiffusionModel, request: EraseRequest, spent: Mapping[str, int], **log: Any) -> PatchCard:
        """Provenance of a patch this method made. ``spent``: the cost counter before the run."""
        now = model.evals.snapshot()
        return PatchCard(
            method=self.label,
            config=self.plain(),
            request=request,
            base={**model.info, "digest": model.digest()},
            cost={k: now[k] - spent[k] for k in ("forward", "calls", "backward")},
            versions=versions(),
            log=log,
        )
