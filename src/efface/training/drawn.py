"""Stand-ins for training images: methods that were published with images of a concept draw them from the frozen model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.base import DiffusionModel
from .loop import Step


def surrogate_evals(n: int, steps: int, guidance: float) -> int:
    """Cost of :func:`surrogate_latents`: one evaluation per step without guidance, two with."""
    return n * steps * (1 if guidance == 1.0 else 2)


@torch.no_grad()
def surrogate_latents(
    model: DiffusionModel, prompts: Sequence[str], n: int, *, steps: int, guidance: float, seed: int, batch: int = 16
) -> Tensor:
    """Clean latents (n, C, h, w): number i shows prompt i modulo their number, as the model draws it with deterministic DDIM.

    The same seed gives the same start noise; nothing is decoded, so no VAE stands between them and training.
    """
    rng, parts = torch.Generator().manual_seed(seed), []
    for i in range(0, n, batch):
        c = model.encode([prompts[j % len(prompts)] for j in range(i, min(i + batch, n))])
        parts.append(model.denoise(c, model.noise(len(c), rng), steps, guidance))
    return torch.cat(parts)


def renoised(model: DiffusionModel, z_0: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """``(z_t, t, noise)``: each clean latent (B, C, h, w) at its own t, uniform over all training levels."""
    t = model.schedule.numbered([step.randint(model.schedule.size) for _ in z_0], z_0.device)
    noise = model.noise(len(z_0), step.rng)
    return model.schedule.noised(z_0, noise, t), t, noise
