"""The Gumbel-Softmax relaxation of a choice among n rows."""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel_noise(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Standard Gumbel noise ``-log(-log u)``; u is kept inside (0, 1) so the result is finite."""
    u = torch.rand(shape, generator=rng, dtype=torch.float64).clamp_(1e-10, 1 - 1e-10)
    return (-torch.log(-torch.log(u))).float()


def gumbel_softmax(logits: Tensor, noise: Tensor, tau: float, hard: bool) -> Tensor:
    """``softmax((logits + noise) / tau)`` over the last axis; rows lie on the simplex.

    ``hard`` returns the one-hot argmax in the forward pass and the softmax gradient in the backward pass
    (straight-through): tau then only scales the gradient. logits, noise: (..., n).
    """
    soft = torch.softmax((logits + noise) / tau, dim=-1)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return one_hot + soft - soft.detach()


def entropy(logits: Tensor) -> Tensor:
    """Entropy of ``softmax(logits)`` in nats; log n for a search that has learned nothing. logits: (..., n)."""
    log_p = torch.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(-1)
