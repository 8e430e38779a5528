"""Images drawn by the original model, in place of the photographs with which some methods were
published."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.base import DiffusionModel
from .loop import Step


def surrogate_evals(model: DiffusionModel, n: int, steps: int, guidance: float) -> int:
    """UNet evaluations of :func:`surrogate_latents`: one for each sampler step without guidance,
    two with it."""
    return n * steps * model.branches(guidance)


@torch.no_grad()
def surrogate_latents(
    model: DiffusionModel, prompts: Sequence[str], n: int, *, steps: int, guidance: float, seed: int, batch: int = 16
) -> Tensor:
    """Clean latents (n, C, h, w) of images by the model. Image i shows prompt i modulo the number
    of prompts.

    They come from deterministic DDIM, and the same seed gives the same start noise. Nothing is
    decoded, so that no VAE stands between the model and the training.
    """
    rng, parts = torch.Generator().manual_seed(seed), []
    for i in range(0, n, batch):
        c = model.encode([prompts[j % len(prompts)] for j in range(i, min(i + batch, n))])
        parts.append(model.denoise(c, model.noise(len(c), rng), steps, guidance))
    return torch.cat(parts)


def renoised(model: DiffusionModel, z_0: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """``(z_t, t, noise)``: each clean latent (B, C, h, w) with noise at a t of its own, uniform
    over all training timesteps."""
    t = model.schedule.numbered([step.randint(model.schedule.size) for _ in z_0], z_0.device)
    noise = model.noise(len(z_0), step.rng)
    return model.schedule.noised(z_0, noise, t), t, noise
