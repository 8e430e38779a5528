"""Combinations of noise predictions, such as guidance and the goals of erasure.

:func:`guided`, :func:`away_from`, :func:`shifted` and :func:`composed` are affine with coefficients
that sum to 1. They commute with the conversions between eps, v and x0 at fixed (z_t, t), so they
hold for every kind of network. :func:`safety` is a difference of predictions and :func:`hinge`
compares distances.
"""

from __future__ import annotations

import torch
from torch import Tensor


def guided(eps_0: Tensor, eps_c: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: ``eps_0 + scale (eps_c - eps_0)``. Shapes (B, C, h, w)."""
    return eps_0 + scale * (eps_c - eps_0)


def away_from(eps_anchor: Tensor, eps_e: Tensor, eta: float) -> Tensor:
    """The goal of an erasure, ``eps_anchor - eta (eps_e - eps_anchor)``. With ``eta = 0`` it is the
    anchor's prediction.

    This is the convention of the legacy ESD code, AP and AGE. The newer ``esd_sd.py`` centres the
    goal on ``eps_e``: its ``negative_guidance`` equals our ``eta + 1``.
    """
    return eps_anchor - eta * (eps_e - eps_anchor)


def shifted(eps_from: Tensor, eps_anchor: Tensor, eps_e: Tensor, eta: float) -> Tensor:
    """``eps_from - eta (eps_e - eps_anchor)``: what the target adds to the anchor is taken out of
    another prompt.

    With ``eps_from = eps_e`` this is :func:`away_from` with ``eta - 1``.
    """
    return eps_from - eta * (eps_e - eps_anchor)


def composed(eps_0: Tensor, eps_anchor: Tensor, eps_away: Tensor, towards: float, away: float) -> Tensor:
    """A goal towards the anchor and away from several prompts: ``eps_0 + towards (eps_anchor -
    eps_0) - away mean_j (eps_j - eps_0)``.

    eps_away is (J, B, C, h, w), the others are (B, C, h, w). With ``eps_anchor = eps_0`` and one
    prompt this is :func:`away_from`.
    """
    return eps_0 + towards * (eps_anchor - eps_0) - away * (eps_away.mean(0) - eps_0)


def safety(eps_0: Tensor, eps_c: Tensor, eps_s: Tensor, scale: float, threshold: float) -> Tensor:
    """What safety guidance subtracts from the prompt's prediction: the direction of the safety
    text, where both pull the same way.

        phi = min(scale |eps_c - eps_s|, 1)  where  eps_c - eps_s < threshold,  else 0
        gamma = phi (eps_s - eps_0)

    Elementwise; shapes (B, C, h, w). Source: Schramowski et al. 2023, equations 3 to 6 (without the
    momentum).
    """
    off = eps_c - eps_s
    phi = torch.where(off < threshold, (scale * off.abs()).clamp_max(1.0), 0.0)
    return phi * (eps_s - eps_0)


def hinge(x: Tensor, safe: Tensor, away: Tensor, margin: float) -> Tensor:
    """A loss that is 0 once x is nearer to ``safe`` than to ``away``: ``max(0, |x - safe|^2 - |x -
    away|^2 + margin)`` per row.

    Squares are averaged over the elements; (B, C, h, w) -> (B,). The loss is affine in x while it
    is active: its gradient is ``2 (away - safe) / N`` wherever x is. So it pushes x past the plane
    between the two and does not pull it to ``safe``.
    """
    off = (x - safe).square() - (x - away).square()
    return (off.flatten(1).mean(1) + margin).clamp_min(0.0)
