"""What an erasure will take, before it is started: memory, evaluations, seconds, and the setting that makes it fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..methods.base import Method
from ..methods.trained import Trained
from ..models.load import load_model
from ..registry import METHODS, build_method, preset_for
from .cost import seconds_per_eval
from .erase import request_for
from .memory import Needs


@dataclass(frozen=True)
class Estimate:
    """What an erasure will take: memory, UNet evaluations and seconds."""

    model: str
    method: str
    parts: dict[str, int]
    """Bytes of memory, by what they hold."""
    free: int | None
    """Bytes that are free on the device, with the weights that are loaded counted as free; None where that is unknown."""
    evaluations: float
    at_most: bool
    seconds: tuple[float, float]
    """Between the time of the forward passes alone, and twice that, because part of them are differentiated."""
    savings: dict[str, int]
    """Bytes that each setting which is off would save by itself, in the order of what the settings cost."""
    remedy: str
    """The first settings with which the run fits, as a sentence; "" where it fits."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool | None:
        return None if self.free is None else self.total <= self.free


def estimate(
    model: Any,
    method: Method | str,
    *,
    targets: Any = (),
    checkpointing: bool | None = None,
    autocast: str | None = None,
) -> Estimate:
    """Count what ``efface.erase`` with these arguments will take, without training.

    The weights of the model are counted as they are loaded. What a row keeps for the backward pass is counted on a network of the
    same shape without numbers; see :mod:`efface.models.footprint`. ``checkpointing`` and ``autocast`` count with these settings
    instead of the model's own. A method that does not train the network keeps nothing; what
    it needs beside the weights is not counted. ``targets``: what will be erased; left out, one concept. Raises BadOption for a
    method whose rows are not known.

    >>> import efface
    >>> found = efface.estimate("tiny", "ap", targets="cat")
    >>> found.total == sum(found.parts.values())
    True
    >>> round(found.evaluations)
    52

    """
    model = load_model(model)
    built = build_method(method, preset=preset_for(METHODS.find(method), model)) if isinstance(method, str) else method
    names = targets or (model.concept_names[0] if model.concept_names else "dog")
    request = request_for(model, names)
    evals = built.expected_evals(model, request)
    least = evals * seconds_per_eval(model)
    needs = Needs(model, built, checkpointing=checkpointing, autocast=autocast)
    return Estimate(
        model.name,
        built.label,
        needs.parts(),
        needs.free,
        evals,
        built.at_most,
        (least, 2 * least if isinstance(built, Trained) else least),
        needs.savings(),
        needs.remedy(),
    )
