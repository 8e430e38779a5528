"""What a method is: a frozen dataclass of hyper-parameters and one ``erase`` body."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..concepts.request import EraseRequest
from ..models.base import DiffusionModel
from ..options import check, option
from ..patches import Patch, PatchCard
from ..training.loop import Run
from ..versions import versions

__all__ = ["Method", "option"]


@dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """Abstract. A final subclass states its equation, deviations and cost in its docstring and fills ``erase``."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Named sets of options. "paper" is the default of full-size models; "mini" and "tiny" are ours."""

    def __post_init__(self) -> None:
        """Every value is one that its option takes, however it came here. A subclass with more to check calls this first."""
        check(self)

    @abc.abstractmethod
    def erase(self, model: DiffusionModel, request: EraseRequest, run: Run | None = None) -> Patch:
        """The change that erases ``request.targets``. Never changes ``model``; same seed, same bits."""

    @abc.abstractmethod
    def expected_evals(self, model: DiffusionModel, request: EraseRequest) -> float:
        """Documented cost: expected UNet forward evaluations of ``erase``."""

    @property
    def label(self) -> str:
        """What tables and cards call this configuration; variants that deserve a name of their own give it here."""
        return self.name

    def card(self, model: DiffusionModel, request: EraseRequest, spent: Mapping[str, int], **log: Any) -> PatchCard:
        """Provenance of a patch this method made. ``spent``: the cost counter before the run."""
        now = model.evals.snapshot()
        return PatchCard(
            method=self.label,
            config=dataclasses.asdict(self),
            request={"targets": list(request.targets), "anchor": request.anchor, "preserve": list(request.preserve)},
            base={**model.info, "digest": model.digest()},
            cost={k: now[k] - spent[k] for k in ("forward", "calls", "backward")},
            versions=versions(),
            log=log,
        )
