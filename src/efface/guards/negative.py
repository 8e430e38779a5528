"""A negative prompt: guidance away from the target instead of away from the empty prompt."""

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
    """The target takes the place of the empty prompt.

        eps = eps(z_t, t, c_neg) + s (eps(z_t, t, c) - eps(z_t, t, c_neg))

    Reference: a feature of every pipeline. An independent harness found it ahead of Safe Latent Diffusion (spec 6.6).
    Cost: none: 2 evaluations per row and step as without.
    """

    name: ClassVar[str] = "negative"
    summary: ClassVar[str] = "the target as negative prompt"
    paper: ClassVar[str] = "none; a feature of every pipeline"
    branches: ClassVar[int] = 2

    text: str = option("", "negative prompt; empty: the targets", "ours")

    def negative(self, targets: tuple[str, ...]) -> str:
        """The negative prompt against the targets."""
        return self.text or ", ".join(names_of(targets, "targets"))

    @contextmanager
    def active(self, model: DiffusionModel, targets: tuple[str, ...]) -> Iterator[None]:
        text = self.negative(targets)
        with model.guided_by(lambda c, scale: _Guide(model.encode([text] * len(c)), c, guidance_needed(self.name, scale))):
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
