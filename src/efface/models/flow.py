"""Noise levels of rectified-flow models, read from the diffusers scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..equations.flow import (
    euler_step,
    flow_dpm_step,
    flow_loss_weight,
    noise_from_velocity,
    velocity_of,
    x0_from_velocity,
)
from ..errors import BadFile, BadOption
from .levels import Levels, Past


@dataclass(frozen=True)
class FlowSchedule(Levels):
    """``z_t = (1 - s) x0 + s noise`` with ``s = t / T``; the network predicts ``noise - x0``.

    Grid and training levels are the scheduler's own: its shift is applied twice in some versions of diffusers, and a grid that
    was computed from the formula would be another one than the deployed one. Training levels are uniform on the shifted axis, so
    they concentrate where the sampler spends its steps.
    """

    config: Mapping[str, Any]
    """The ``FlowMatchEulerDiscreteScheduler`` it was read from."""
    tokens: int
    """Image tokens of the network, on which a dynamic shift depends."""
    prediction_type: str = field(default="flow_prediction", init=False)

    @cached_property
    def _trained(self) -> Tensor:
        """(T,) timesteps in ascending order."""
        scheduler = self._scheduler(self.size)
        return scheduler.timesteps.flip(0).contiguous()

    def _scheduler(self, steps: int) -> Any:
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(self.config))
        told = scheduler.config
        if told.use_dynamic_shifting:  # as the stock pipelines compute it
            slope = (told.max_shift - told.base_shift) / (told.max_image_seq_len - told.base_image_seq_len)
            scheduler.set_timesteps(steps, mu=told.base_shift + slope * (self.tokens - told.base_image_seq_len))
        else:
            scheduler.set_timesteps(steps)
        return scheduler

    @property
    def size(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    @property
    def end(self) -> float:
        return 0.0

    def timesteps(self, steps: int) -> list[float]:
        if not 1 <= steps <= self.size:
            raise BadOption(f"{steps} sampling steps: the schedule has {self.size} levels; take 1 to that many.")
        found: list[float] = self._scheduler(steps).timesteps.tolist()
        return found

    def numbered(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        return self._trained[list(numbers)].to(device)

    def share(self, t: float | Tensor) -> Tensor:
        """s: how much of z_t is noise; a scalar, or (B, 1, 1, 1) for t (B,)."""
        if isinstance(t, Tensor):
            return (t / self.size).reshape(-1, 1, 1, 1)
        return torch.tensor(t) / self.size

    def coefficients(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        s = self.share(t)
        return 1 - s, s

    def eps(self, output: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
        return noise_from_velocity(output, z, self.share(t))

    def x0(self, output: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
        return x0_from_velocity(output, z, self.share(t))

    def output(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        return velocity_of(x0, noise)

    def prediction(self, output: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
        return output

    def truth(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        return velocity_of(x0, noise)

    def step(
        self, prediction: Tensor, z: Tensor, t: float, t_next: float, past: Past | None, solver: str
    ) -> tuple[Tensor, Past | None]:
        s, s_next = (self.share(x).to(z.dtype) for x in (t, t_next))
        if solver == "ddim":
            return euler_step(prediction, z, s, s_next), None
        x0 = x0_from_velocity(prediction, z, s)
        x0_last, t_last = (None, t) if past is None else (past.outputs[-1], past.t)
        return flow_dpm_step(x0, x0_last, z, self.share(t_last).to(z.dtype), s, s_next), Past(t, z, (x0,))

    def loss_weight(self, t: Tensor, space: str) -> Tensor:
        return flow_loss_weight(self.share(t), space)


def flow_schedule_of(config: Mapping[str, Any], tokens: int, name: str = "the model") -> FlowSchedule:
    """The levels of a diffusers scheduler config. Raises BadFile for a scheduler whose steps are others."""
    family = str(config.get("_class_name", "FlowMatchEulerDiscreteScheduler"))
    if family != "FlowMatchEulerDiscreteScheduler":
        raise BadFile(f"{name} samples with {family}; efface reads FlowMatchEulerDiscreteScheduler. Replace its scheduler.")
    for option in ("stochastic_sampling", "invert_sigmas"):
        if config.get(option):
            raise BadFile(f"{name} has a scheduler with {option}=true, whose steps efface does not take. Set it to false.")
    return FlowSchedule({**{k: v for k, v in config.items() if not k.startswith("_")}, "_class_name": family}, tokens)
