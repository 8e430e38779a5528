"""A negative prompt: guidance points away from the target in place of the empty prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..concepts.request import names_of
from ..equations.guidance import guided
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..options import option
from .base import Guard, guidance_needed


@dataclass(frozen=True, kw_only=True)
class Negative(Guard):
    """Guide away from the target by a negative prompt, in place of the empty one.

    Objective::

        eps = eps(z_t, t, c_neg) + s (eps(z_t, t, c) - eps(z_t, t, c_neg))

    c is the encoded prompt, c_neg the negative prompt (the targets, or ``text``) and s the guidance
    scale.

    Reference: a feature of every pipeline.

    Cost: none. An image takes 2 UNet evaluations at each sampler step, as without the guard.
    """

    name: ClassVar[str] = "negative"
    summary: ClassVar[str] = "give the target as a negative prompt"
    paper: ClassVar[str] = "none; a feature of every pipeline"
    branches: ClassVar[int] = 2

    text: str = option("", "the negative prompt, empty for the targets' names", "ours")

    def negative(self, targets: tuple[str, ...]) -> str:
        """The negative prompt against the targets."""
        return self.text or ", ".join(names_of(targets, "targets"))

    @contextmanager
    def active(self, model: DiffusionModel, targets: tuple[str, ...]) -> Iterator[None]:
        text = self.negative(targets)

        def guide(c: Cond, scale: float) -> _Guide:
            return _Guide(model.encode_negative([text] * len(c)), c, guidance_needed(self.name, scale))

        with model.guided_by(guide):
            yield

    def pipeline_arguments(self, targets: tuple[str, ...]) -> Mapping[str, Any]:
        """What to add to the call of a diffusers pipeline: ``pipe(prompt, **guard.pipeline_arguments(("cat",)))``."""
        return {"negative_prompt": self.negative(targets)}


class _Guide:
    def __init__(self, negative: Cond, c: Cond, scale: float) -> None:
        self.both, self.scale = Cond.cat([negative, c]), scale

    def cond(self, t: Tensor) -> Cond:
        return self.both

    def combine(self, eps: Tensor, t: Tensor) -> Tensor:
        eps_n, eps_c = eps.chunk(2)
        return guided(eps_n, eps_c, self.scale)
