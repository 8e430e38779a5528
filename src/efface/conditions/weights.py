"""Other changes of the weights beside the erasure: a LoRA on top, a merge, harmless fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..attacks import Deployed
from ..attacks.base import drawn
from ..patches import Patch
from .base import Condition, Setting, applied, mixed, sampled


def training_evals(setting: Setting) -> float:
    """Of one harmless fine-tuning: its images, and forward and backward passes."""
    return float(setting.tuning.images * setting.per_image + 2 * setting.tuning.batch * setting.updates)


@dataclass(frozen=True)
class Stacked(Condition):
    """A LoRA of other concepts on top of the erased weights, and on top of the unmodified ones."""

    name: ClassVar[str] = "LoRA"
    told: str = "a LoRA of other concepts on top"
    weight: float = 1.0

    def draw(self, setting: Setting, patch: Patch | None) -> Tensor:
        with applied(setting.model, mixed(setting, (1.0, patch), (self.weight, setting.harmless))) as model, torch.no_grad():
            return sampled(model, setting.cases, setting.steps)

    def evals(self, setting: Setting) -> float:
        trained = training_evals(setting) / 2 if setting.lora is None else 0.0  # once for both models
        return super().evals(setting) + trained


@dataclass(frozen=True)
class Merged(Condition):
    """Averaged weights: half of the erasure and half of the other change. A merge with the base keeps half of the erasure."""

    name: ClassVar[str] = "merge"
    told: str
    with_base: bool = False

    def draw(self, setting: Setting, patch: Patch | None) -> Tensor:
        other = None
        if not self.with_base:
            other = setting.sibling if setting.sibling is not None else setting.harmless
        with applied(setting.model, mixed(setting, (0.5, patch), (0.5, other))) as model, torch.no_grad():
            return sampled(model, setting.cases, setting.steps)


@dataclass(frozen=True)
class Tuned(Condition):
    """Fine-tuning on images of other concepts, starting from the erased weights: the training of the attack
    :class:`~efface.attacks.resurge.Resurge`, which has no intent."""

    name: ClassVar[str] = "fine-tuning"
    told: str

    def draw(self, setting: Setting, patch: Patch | None) -> Tensor:
        deployed = Deployed(setting.model, setting.steps, patch=patch)
        images: Tensor | None = None
        for step, student in setting.tuning.tuned(deployed, setting.goal, setting.updates):
            if step == setting.updates:
                with torch.no_grad():
                    latents = drawn(student, setting.cases, setting.steps)
                    images = torch.cat([student.decode(z).float().cpu() for z in latents.split(32)])
        assert images is not None
        return images

    def evals(self, setting: Setting) -> float:
        return super().evals(setting) + training_evals(setting)
