"""Subspaces of embeddings: projection onto the span of given vectors, and the trigger rule of
SAFREE."""

from __future__ import annotations

import torch
from torch import Tensor


def projector(vectors: Tensor) -> Tensor:
    """(d, d) float64 orthogonal projector onto the span of the rows of ``vectors`` (n, d): ``P = C
    (C^T C)^+ C^T``.

    C has the rows as columns. P comes from a singular value decomposition, so that dependent rows
    do no harm.
    """
    v = vectors.double()
    _, s, rows = torch.linalg.svd(v, full_matrices=False)
    basis = rows[s > s.max().clamp_min(torch.finfo(v.dtype).tiny) * max(v.shape) * torch.finfo(v.dtype).eps]
    return basis.T @ basis


def triggers(distances: Tensor, alpha: float) -> Tensor:
    """(n,) which tokens are triggers: tokens without which the prompt is farther from the concepts
    than without another.

    ``d_i >= (1 + alpha) mean_{j != i} d_j``, where d_i is the distance without token i. A single
    token has no others and is never a trigger. Source: SAFREE, equation 4.
    """
    n = len(distances)
    if n < 2:
        return torch.zeros(n, dtype=torch.bool, device=distances.device)
    others = (distances.sum() - distances) / (n - 1)
    return distances >= (1 + alpha) * others
