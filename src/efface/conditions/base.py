"""What a condition is: a way in which a published erasure may be used, other than the one it was measured in."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ..attacks import Deployed, Goal
from ..attacks.base import Called
from ..attacks.resurge import Resurge
from ..concepts.prompts import Case
from ..models.base import DiffusionModel
from ..models.low_rank import trained_factors
from ..patches import Patch

BATCH = 32
"""Images that are drawn together."""


@dataclass(frozen=True)
class Setting:
    """One erasure and the cases on which it is looked at. The model has its original weights."""

    model: DiffusionModel
    patch: Patch
    target: str
    cases: tuple[Case, ...]
    steps: int
    called: tuple[Called, ...] = ()
    """Of each case, how its prompt asks for the target; () where every prompt has the target's name."""
    tuning: Resurge = field(default_factory=Resurge)
    """How harmless fine-tuning is done, of the model for the LoRA and of the erased model."""
    updates: int = 100
    """Of that fine-tuning."""
    lora: Patch | None = None
    """Somebody's LoRA as a change of weights; None: one is trained."""
    sibling: Patch | None = None
    """Another change of the same base to merge with; None: the harmless LoRA."""

    @cached_property
    def goal(self) -> Goal:
        """The cases as attacks take them."""
        return Goal(self.target, self.cases, called=self.called)

    @cached_property
    def harmless(self) -> Patch:
        """The LoRA that is stacked: the given one, or one trained on the original model with images of other concepts. Under the
        card of the erasure, because both are for the same base. Cost: the training, once."""
        if self.lora is not None:
            return replace(self.patch, deltas=self.lora.deltas)
        for step, student in self.tuning.tuned(Deployed(self.model, self.steps), self.goal, self.updates):
            if step == self.updates:
                deltas = {n: (up @ down).float() for n, (up, down) in trained_factors(student).items()}
        return replace(self.patch, deltas=deltas)

    @property
    def per_image(self) -> int:
        """UNet evaluations of one image."""
        return self.steps * self.model.branches(self.cases[0].guidance)


class Condition(abc.ABC):
    """Abstract. One condition: it draws the cases of the unmodified and of the erased model in the same way."""

    name: ClassVar[str]
    told: str
    """What is done, for the table."""

    @abc.abstractmethod
    def draw(self, setting: Setting, patch: Patch | None) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] of the cases with this patch, or without one. The model is as before at the end.

        Raises BadOption where the model cannot be used in this way.
        """

    def evals(self, setting: Setting) -> float:
        """UNet evaluations of one call, counted before it."""
        return float(len(setting.cases) * setting.per_image)


@contextmanager
def applied(model: DiffusionModel, patch: Patch | None) -> Iterator[DiffusionModel]:
    """The model with the patch, or as it is."""
    if patch is None:
        yield model
    else:
        with patch.applied(model):
            yield model


def mixed(setting: Setting, *parts: tuple[float, Patch | None]) -> Patch | None:
    """The weighted sum of changes to the base; None stands for no change."""
    deltas: dict[str, Tensor] = {}
    for weight, patch in parts:
        for name, d in (patch.deltas if patch is not None else {}).items():
            deltas[name] = deltas[name] + weight * d if name in deltas else weight * d
    return replace(setting.patch, deltas=deltas) if deltas else None


def sampled(model: DiffusionModel, cases: Sequence[Case], steps: int) -> Tensor:
    """The cases as efface's own sampler draws them."""
    return model.sample(cases, steps, batch=BATCH)


class Plain(Condition):
    """The condition in which erasures are measured: float32 weights and efface's deterministic sampler."""

    name = "plain"
    told = "as it was measured"

    def draw(self, setting: Setting, patch: Patch | None) -> Tensor:
        with applied(setting.model, patch) as model, torch.no_grad():
            return sampled(model, setting.cases, setting.steps)
