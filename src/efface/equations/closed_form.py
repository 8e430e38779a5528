"""Closed-form edits of linear maps that share their input: one d x d matrix for all layers, solved in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def shared_edit(x: Tensor, y: Tensor, a: Tensor, q: Tensor, b: Tensor, lam: float) -> Tensor:
    """``D`` such that ``W' = W (I + D)`` solves, for every W with the same input space,

        min_W'  sum_i a_i |W' x_i - W y_i|^2 + sum_j b_j |W' q_j - W q_j|^2 + lam |W' - W|_F^2.

    Normal equations in delta form: ``D = (Y - X)^T A X G^-1`` with ``G = lam I + X^T A X + Q^T B Q``. The delta form is used
    because preserved rows and ridge drop out of it exactly; ``M G^-1 - I`` would cancel. W does not appear: the edit is
    one matrix shared by all layers and by keys and values.

    x, y: (r, d) inputs of the erased rows and what they should act like; a: (r,) weights > 0.
    q: (p, d) preserved rows, p may be 0; b: (p,) weights > 0. Returns (d, d) float64.
    """
    x, y, a, q, b = (v.double() for v in (x, y, a, q, b))
    gram = lam * torch.eye(x.shape[1], dtype=torch.float64) + (x.T * a) @ x + (q.T * b) @ q
    # D G = (Y - X)^T A X and G is symmetric, so D^T = G^-1 X^T A (Y - X).
    return torch.cholesky_solve((x.T * a) @ (y - x), torch.linalg.cholesky(gram)).T


def apply_edit(weight: Tensor, d: Tensor) -> Tensor:
    """``W' - W = W D`` for W (out, d), computed in float64 and returned in float32."""
    return (weight.double() @ d).float()
