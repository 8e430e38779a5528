"""Combinations of noise predictions. All are affine with coefficients that sum to 1, so they commute with the
eps / v / x0 conversions at fixed (z_t, t) and hold for every parameterization."""

from __future__ import annotations

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
