"""What a guard is: a defence at sampling time that stands between prompt and image and changes no
weight."""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import BadOption
from ..models.base import DiffusionModel
from ..options import Settings


@dataclass(frozen=True, kw_only=True)
class Guard(Settings):
    """Abstract. A guard: its options and :meth:`active`, under which a model samples.

    A final subclass states its equation, deviations and cost in its docstring.
    """

    summary: ClassVar[str]
    paper: ClassVar[str]
    branches: ClassVar[int]
    """UNet evaluations of an image at each sampler step; classifier-free guidance alone takes 2."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What it asks of a model beyond predicting and encoding: names of :data:`efface.models.capabilities.CAPABILITIES`."""
        return ("guidance",)

    @abc.abstractmethod
    def active(self, model: DiffusionModel, targets: tuple[str, ...]) -> AbstractContextManager[None]:
        """Inside this context, the model samples under the guard against ``targets``.

        Raises BadOption where the guard would do nothing.
        """


def guidance_needed(name: str, scale: float) -> float:
    """The guidance scale, if the guard can act through it. Raises BadOption for a scale of 1 or
    less, which has no second branch."""
    if scale <= 1.0:
        raise BadOption(f"the guard {name} acts through guidance and guidance {scale:g} has none; use a larger --guidance.")
    return scale


def refuse_other_families(pipe: Any) -> None:
    """Raises BadOption for a pipeline of diffusers that the guard cannot be put on."""
    if getattr(pipe, "unet", None) is None or getattr(pipe, "text_encoder_3", None) is not None:
        raise BadOption(
            f"the guard knows pipelines of Stable Diffusion 1.x, 2.x and SDXL, and this is a {type(pipe).__name__}. "
            "Use efface's own sampler: efface sample --guard, or guard.active(model, targets)."
        )
