"""Other ways to draw: schedulers of diffusers, other numbers of steps, other guidance, other image sizes."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..concepts.prompts import Case
from ..equations.guidance import guided
from ..errors import BadOption
from ..models.base import DiffusionModel
from ..models.cond import Cond
from ..models.schedule import Schedule, lay
from ..patches import Patch
from .base import BATCH, Condition, Setting, applied, sampled

SCHEDULERS = {
    "Euler": "EulerDiscreteScheduler",
    "Euler ancestral": "EulerAncestralDiscreteScheduler",
    "DPM-Solver++": "DPMSolverMultistepScheduler",
    "PNDM": "PNDMScheduler",
    "UniPC": "UniPCMultistepScheduler",
}
"""Names for people -> classes of diffusers."""


@dataclass(frozen=True)
class Scheduler(Condition):
    """A scheduler of diffusers with the model's own noise levels, called as the stock pipelines call it."""

    name: ClassVar[str] = "scheduler"
    kind: str

    @property
    def told(self) -> str:  # type: ignore[override]
        return f"scheduler {self.kind}"

    def draw(self, setting: Setting, patch: Patch | None) -> Tensor:
        schedule = setting.model.schedule
        if not isinstance(schedule, Schedule):
            raise BadOption("a flow has steps of its own, and these schedulers are for models that predict eps or v.")
        config = {k: v for k, v in schedule.config.items() if not k.startswith("_")}
        with applied(setting.model, patch) as model:
            return torch.cat(
                [
                    stepped(model, self.scheduler(config), setting.cases[i : i + BATCH], setting.steps)
                    for i in range(0, len(setting.cases), BATCH)
                ]
            )

    def scheduler(self, config: dict[str, Any]) -> Any:
        import diffusers

        return getattr(diffusers, SCHEDULERS[self.kind]).from_config(
            {**config, "skip_prk_steps": True} if self.kind == "PNDM" else config
        )


@torch.no_grad()
def stepped(model: DiffusionModel, scheduler: Any, cases: Sequence[Case], steps: int) -> Tensor:
    """Images of cases of one guidance scale by a scheduler of diffusers."""
    c, scale = model.told(model.encode([case.prompt for case in cases]), cases[0].guidance)
    null = model.unconditional(len(c)) if scale > 1 else None
    lay(scheduler, steps)
    z = model.case_noise([case.seed for case in cases]) * scheduler.init_noise_sigma
    more: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        more = {"generator": [torch.Generator().manual_seed(case.seed + 1) for case in cases]}
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(z, t)
        levels = t.to(model.device).expand(len(z))
        if null is None:
            out = model.predict(seen, levels, c)
        else:
            both = model.predict(torch.cat([seen, seen]), levels.repeat(2), Cond.cat([null, c]))
            out = guided(both[: len(z)], both[len(z) :], scale)
        z = scheduler.step(out, t, z, **more).prev_sample
    return model.decode(z).float().cpu()


@dataclass(frozen=True)
class Steps(Condition):
    """Another number of sampler steps."""

    name: ClassVar[str] = "steps"
    factor: float
    told: str

    def steps(self, setting: Setting) -> int:
        return max(1, round(setting.steps * self.factor))

    def draw(self, setting: Setting, patch: Patch | None) -> Tensor:
        with applied(setting.model, patch) as model, torch.no_grad():
            return sampled(model, setting.cases, self.steps(setting))

    def evals(self, setting: Setting) -> float:
        return super().evals(setting) * self.steps(setting) / setting.steps


@dataclass(frozen=True)
class Guidance(Condition):
    """Another guidance scale."""

    name: ClassVar[str] = "guidance"
    factor: float
    told: str

    def draw(self, setting: Setting, patch: Patch | None) -> Tensor:
        cases = [replace(case, guidance=case.guidance * self.factor) for case in setting.cases]
        if setting.model.distilled and not getattr(setting.model, "takes_guidance", False):
            raise BadOption("this network is distilled and takes no guidance scale.")
        with applied(setting.model, patch) as model, torch.no_grad():
            return sampled(model, cases, setting.steps)


@dataclass(frozen=True)
class Size(Condition):
    """Another image size. The images are judged after they were scaled to the model's own size."""

    name: ClassVar[str] = "size"
    factor: float
    told: str

    def draw(self, setting: Setting, patch: Patch | None) -> Tensor:
        with applied(setting.model, patch) as model, torch.no_grad():
            channels, *sides = model.latent_shape
            twin = copy.copy(model)
            # Multiples of 4 latents, away from the own size: networks halve their input two or three times.
            cut = math.floor if self.factor < 1 else math.ceil
            height, width = (max(4, 4 * cut(side * self.factor / 4)) for side in sides)
            twin.latent_shape = (channels, height, width)
            own = model.decode(model.case_noise([0])).shape[-2:]
            images = sampled(twin, setting.cases, setting.steps)
            return interpolate(images, size=own, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
