"""Noise levels of a family: everything that differs between models that predict noise, v or the velocity of a flow.

Methods, attacks, guards, pools and samplers have one body for all of them. They ask for a grid of timesteps, for levels to train
at, for latents at a level, and for what the network should have said; how z_t is mixed is known here and nowhere else.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Past:
    """What a multistep solver remembers of the steps before."""

    t: float
    """Timestep of the step before."""
    z: Tensor
    """Latents it started from."""
    outputs: tuple[Tensor, ...]
    """What was predicted, the newest last: clean latents ("dpm", "unipc") or eps ("plms")."""
    before: float | None = None
    """Timestep of the last but one of ``outputs``, where "unipc" needs it."""


class Levels(abc.ABC):
    """``z_t = alpha(t) x0 + sigma(t) noise``. A timestep is an integer or a float, or one per row: (B,)."""

    prediction_type: str
    """What the network outputs, in diffusers' words: epsilon, v_prediction or flow_prediction."""
    config: Mapping[str, Any]
    """The diffusers scheduler it was read from."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many levels a network was trained at."""

    @property
    @abc.abstractmethod
    def end(self) -> float:
        """The timestep after the last one of a grid: clean latents."""

    @abc.abstractmethod
    def timesteps(self, steps: int) -> Sequence[float]:
        """The descending sampling grid."""

    @abc.abstractmethod
    def numbered(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """(B,) timesteps of the training levels number 0 (the cleanest) .. ``size`` - 1."""

    @abc.abstractmethod
    def coefficients(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at a timestep: scalars, or (B, 1, 1, 1) each for t (B,)."""

    @abc.abstractmethod
    def eps(self, output: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
        """Noise prediction of the network's output."""

    @abc.abstractmethod
    def x0(self, output: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
        """Prediction of the clean latents from the network's output."""

    @abc.abstractmethod
    def output(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """What a network that knew the pair would output."""

    @abc.abstractmethod
    def prediction(self, output: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
        """What guidance combines and the solver steps with: eps, or the velocity of a flow; v at a diffusion's level of pure
        noise.

        At a level of pure noise, eps is z whatever the network says; guidance of eps would do nothing there.
        """

    @abc.abstractmethod
    def truth(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """The :meth:`prediction` of a network that knew the pair."""

    @abc.abstractmethod
    def step(
        self, prediction: Tensor, z: Tensor, t: float, t_next: float, past: Past | None, solver: str
    ) -> tuple[Tensor, Past | None]:
        """One step of "ddim" (for a flow, Euler's), "dpm" (DPM-Solver++(2M)), "plms" or "unipc", and what the next step needs.

        "plms" is of eps alone; a step to its own timestep takes the step before once more. "unipc" is of flows alone; before it
        goes on, it corrects the latent that it was given.
        """

    @abc.abstractmethod
    def loss_weight(self, t: Tensor, space: str) -> Tensor:
        """(B, 1, 1, 1) ``w`` in ``MSE_space = w MSE_output`` at fixed z_t, for the spaces "eps" and "x0"."""

    def noised(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """Clean latents (B, C, h, w) with this noise at a timestep."""
        alpha, sigma = self.coefficients(t)
        return alpha.to(x0) * x0 + sigma.to(x0) * noise
