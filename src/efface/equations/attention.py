"""Attention of pixels to text tokens: its probabilities, and how much of it chosen tokens receive."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def probabilities(queries: Tensor, keys: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Attention probabilities ``softmax(Q K^T / sqrt(d_h) + bias)`` over all keys, in float32.

    queries are (B, P, heads d_h) for P pixels, keys (B, L, heads d_h) for L tokens, bias (B, 1, L):
    large and negative where a token is masked. Returns (B, heads, P, L), whose rows sum to 1.
    """
    q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys))
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return torch.softmax(logits if bias is None else logits + bias.float()[:, None], dim=-1)


def column_norm(maps: Sequence[Tensor], columns: Tensor, rms: bool = False) -> Tensor:
    """How much attention the chosen tokens receive in each batch row: ``|| concat_l vec(A_l[:, :,
    S]) ||_2``.

    maps has one (B, heads_l, P_l, L) for each layer l. columns (B, L) says which tokens S each row
    chooses. ``rms`` divides by the square root of the number of entries, so that the value does not
    grow with resolution, heads, layers or the size of S. Returns (B,).
    """
    squares = torch.stack([(a.square() * columns[:, None, None]).sum((1, 2, 3)) for a in maps]).sum(0)
    if rms:
        entries = columns.sum(1) * sum(a.shape[1] * a.shape[2] for a in maps)
        squares = squares / entries
    return squares.sqrt()


def pulled(rows: Tensor, length: float, rate: float) -> Tensor:
    """Move the length of every row ``rate`` of the way to ``length`` and keep its direction: ``|e|
    <- |e| + rate (length - |e|)``.

    rows: (n, d), none of them zero.
    """
    norm = rows.norm(dim=-1, keepdim=True)
    return rows / norm * (norm + rate * (length - norm))
