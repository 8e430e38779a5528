"""Combinations of noise predictions. All are affine with coefficients that sum to 1, so they commute with the
eps / v / x0 conversions at fixed (z_t, t) and hold for every parameterization. :func:`safety` is a difference, :func:`hinge` a
distance."""

from __future__ import annotations

import torch
from torch import Tensor


def guided(eps_0: Tensor, eps_c: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: ``eps_0 + scale (eps_c - eps_0)``. Shapes (B, C, h, w)."""
    return eps_0 + scale * (eps_c - eps_0)


def away_from(eps_anchor: Tensor, eps_e: Tensor, eta: float) -> Tensor:
    """Erasure goal ``eps_anchor - eta (eps_e - eps_anchor)``; ``eta = 0`` maps to the anchor itself.

    This is the convention of the legacy ESD code, AP and AGE. The newer ``esd_sd.py`` centres the goal on ``eps_e``:
    its ``negative_guidance`` equals our ``eta + 1``.
    """
    return eps_anchor - eta * (eps_e - eps_anchor)


def shifted(eps_from: Tensor, eps_anchor: Tensor, eps_e: Tensor, eta: float) -> Tensor:
    """``eps_from - eta (eps_e - eps_anchor)``: what the target adds to the anchor is taken out of another prompt. With
    ``eps_from = eps_e`` this is :func:`away_from` with ``eta - 1``."""
    return eps_from - eta * (eps_e - eps_anchor)


def composed(eps_0: Tensor, eps_anchor: Tensor, eps_away: Tensor, towards: float, away: float) -> Tensor:
    """``eps_0 + towards (eps_anchor - eps_0) - away mean_j (eps_j - eps_0)``: to the anchor, away from all of several prompts.

    eps_away: (J, B, C, h, w), the others (B, C, h, w). With ``eps_anchor = eps_0`` and one prompt this is :func:`away_from`.
    """
    return eps_0 + towards * (eps_anchor - eps_0) - away * (eps_away.mean(0) - eps_0)


def safety(eps_0: Tensor, eps_c: Tensor, eps_s: Tensor, scale: float, threshold: float) -> Tensor:
    """The direction to take away from the prompt's prediction: towards the safety text, where both pull the same way.

        phi = min(scale |eps_c - eps_s|, 1)  where  eps_c - eps_s < threshold,  else 0
        gamma = phi (eps_s - eps_0)

    Elementwise; shapes (B, C, h, w). Source: Schramowski et al. 2023, equations 3 to 6 (without the momentum).
    """
    off = eps_c - eps_s
    phi = torch.where(off < threshold, (scale * off.abs()).clamp_max(1.0), 0.0)
    return phi * (eps_s - eps_0)


def hinge(x: Tensor, safe: Tensor, away: Tensor, margin: float) -> Tensor:
    """``max(0, |x - safe|^2 - |x - away|^2 + margin)`` per row, squares averaged over the elements; (B, C, h, w) -> (B,).

    Affine in x while it is active: the gradient is ``2 (away - safe) / N`` wherever x is, and 0 once x is closer to ``safe``
    than to ``away`` by the margin. It pushes x past the plane between the two; it does not pull x to ``safe``.
    """
    off = (x - safe).square() - (x - away).square()
    return (off.flatten(1).mean(1) + margin).clamp_min(0.0)
