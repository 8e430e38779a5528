"""Update rules that torch has no optimizer for: ascent of an embedding, and pulling weights back
towards their origin."""

from __future__ import annotations

import torch
from torch import Tensor


def normalised_ascent(p: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """A step of length ``rate |p|`` up the gradient in every row: ``p + rate |p| gradient /
    |gradient|``. p, gradient: (B, ...).

    Norms are over all axes but the first. Rows without a gradient stay where they are.
    """
    norms = [x.flatten(1).norm(dim=1).reshape(-1, *(1,) * (p.ndim - 1)) for x in (p, gradient)]
    return p + rate * norms[0] * torch.where(norms[1] > 0, gradient / norms[1].clamp_min(torch.finfo(p.dtype).tiny), 0.0)


def into_ball(p: Tensor, centre: Tensor, radius: float) -> Tensor:
    """Every row projected onto the ball ``|p - centre| <= radius |centre|``. p, centre: (B, ...)."""
    offset = p - centre
    norms = [x.flatten(1).norm(dim=1).reshape(-1, *(1,) * (p.ndim - 1)) for x in (offset, centre)]
    limit = radius * norms[1]
    return torch.where(norms[0] > limit, centre + offset * limit / norms[0].clamp_min(torch.finfo(p.dtype).tiny), p)


def shrunk(weight: Tensor, origin: Tensor, rho: float) -> Tensor:
    """``theta' - rho (theta' - theta)``: the proximal step of an L2 penalty on the change, with 0
    <= rho <= 1."""
    return weight - rho * (weight - origin)
