"""What a method is: a frozen dataclass of options with one ``erase`` body."""

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
    """Abstract. A method of erasure: its options, and ``erase``, which makes a patch.

    A final subclass states its objective, deviations and cost in its docstring and fills ``erase``
    and ``expected_evals``. ``presets`` names sets of options: "paper" is the default for models of
    full size, and "mini" and "tiny" are ours.
    """

    summary: ClassVar[str]
    paper: ClassVar[str]
    reads_weights: ClassVar[bool] = True
    """Whether it needs every weight as it was published, and not only those that it trains."""

    @abc.abstractmethod
    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        """The patch that erases ``request.targets``. ``model`` never changes, and the same seed
        gives the same bits."""

    @abc.abstractmethod
    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        """How many UNet evaluations ``erase`` is expected to take, counted without running it."""

    @property
    def at_most(self) -> bool:
        """Whether ``expected_evals`` is an upper bound and not the expectation."""
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        """What it asks of a model beyond predicting and encoding: names of :data:`efface.models.capabilities.CAPABILITIES`."""
        return ()

    def check(self, model: DiffusionModel) -> None:
        """Raises BadOption, with the reason, for a model that lacks what the method needs; to be called before any compute."""
        model.require(self.label, (*self.needs, *(("unrounded",) if self.reads_weights else ())))

    @property
    def label(self) -> str:
        """What tables and cards call these options. A variant that deserves a name of its own gives
        it here."""
        return self.name

    def card(self, model: DiffusionModel, request: EraseRequest, spent: Mapping[str, int], **log: Any) -> PatchCard:
        """The card of a patch that this method made. ``spent`` is the model's cost counter from
        before the run. Raises what :meth:`check` raises: no patch is made from weights that were rounded for storage."""
        self.check(model)
        now = model.evals.snapshot()
        return PatchCard(
            method=self.label,
            config=self.plain(),
            request=request,
            base={**model.info, **model.identity()},
            cost={k: now[k] - spent[k] for k in ("forward", "calls", "backward")},
            versions=versions(),
            log=log,
        )
