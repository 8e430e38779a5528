"""Choices among n rows as points of the simplex: the Gumbel-Softmax, projection, entropy, and
thinning."""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel_noise(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Standard Gumbel noise ``-log(-log u)``. u is kept inside (0, 1), so that the noise is finite."""
    u = torch.rand(shape, generator=rng, dtype=torch.float64).clamp_(1e-10, 1 - 1e-10)
    return (-torch.log(-torch.log(u))).float()


def gumbel_softmax(logits: Tensor, noise: Tensor, tau: float, hard: bool) -> Tensor:
    """``softmax((logits + noise) / tau)`` over the last axis: a random choice that gradients pass
    through. logits, noise: (..., n).

    ``hard`` returns the one-hot maximum in the forward pass and the gradient of the softmax in the
    backward pass (straight-through), so that tau only changes the gradient.
    """
    soft = torch.softmax((logits + noise) / tau, dim=-1)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return one_hot + soft - soft.detach()


def onto_simplex(u: Tensor) -> Tensor:
    """The nearest point of ``{y >= 0, sum y = 1}`` to every row of u (..., n): ``max(u - s, 0)``,
    with the shift s from one sort.

    Source: Duchi et al. 2008, algorithm 1.
    """
    ordered = u.sort(-1, descending=True).values
    ranks = torch.arange(1, u.shape[-1] + 1, device=u.device, dtype=u.dtype)
    excess = (ordered.cumsum(-1) - 1) / ranks
    kept = (ordered > excess).sum(-1, keepdim=True)
    return (u - excess.gather(-1, kept - 1)).clamp_min(0)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of ``softmax(logits)`` in nats. It is log n for a search that has learned nothing.
    logits: (..., n)."""
    log_p = torch.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def largest(y: Tensor, k: int) -> Tensor:
    """The ``k`` largest entries of every simplex row (..., n), scaled to sum to 1: a mixture of at
    most k rows."""
    if k >= y.shape[-1]:
        return y
    kept = torch.zeros_like(y).scatter_(-1, y.topk(k, dim=-1).indices, 1.0)
    return y * kept / (y * kept).sum(-1, keepdim=True)


def spread(values: Tensor, n: int) -> Tensor:
    """Indices of at most ``n`` entries of ``values`` (m,) that stand for its whole range,
    ascending.

    This is one-dimensional k-means (Lloyd's algorithm from evenly spaced quantiles, until nothing
    moves), followed by the entry nearest to every centre. Centres may share an entry, so fewer than
    n can come back.
    """
    values = values.double()
    if n >= len(values):
        return torch.arange(len(values))
    centres = torch.quantile(values, (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    while True:
        nearest = (values[:, None] - centres).abs().argmin(1)
        moved = torch.stack([values[nearest == i].mean() if bool((nearest == i).any()) else centres[i] for i in range(n)])
        if torch.equal(moved, centres):
            return torch.unique((values[:, None] - centres).abs().argmin(0))
        centres = moved
