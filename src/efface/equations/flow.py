"""Rectified flow: straight lines between clean latents and noise, and the network that predicts their direction.

Throughout ``z = (1 - s) x0 + s n`` with the share of noise s in [0, 1], broadcastable to z, and ``v = dz/ds = n - x0``.
Source: Esser et al. 2024, arXiv:2403.03206.
"""

from __future__ import annotations

import torch
from torch import Tensor


def velocity_of(x0: Tensor, noise: Tensor) -> Tensor:
    """The velocity of a known pair, ``n - x0``: the same at every level."""
    return noise - x0


def x0_from_velocity(v: Tensor, z: Tensor, s: Tensor) -> Tensor:
    """Predicted clean latent ``z - s v``."""
    return z - s * v


def noise_from_velocity(v: Tensor, z: Tensor, s: Tensor) -> Tensor:
    """Predicted noise ``z + (1 - s) v``. At s = 1 it is z itself, whatever v is."""
    return z + (1 - s) * v


def euler_step(v: Tensor, z: Tensor, s: Tensor, s_next: Tensor) -> Tensor:
    """``z + (s_next - s) v``. It is the deterministic DDIM step ``(1 - s_next) x0 + s_next n`` of the predicted pair."""
    return z + (s_next - s) * v


def flow_loss_weight(s: Tensor, space: str) -> Tensor:
    """``MSE_space = w MSE_v`` at fixed z: ``w = s^2`` for predicted clean latents ("x0"), ``(1 - s)^2`` for predicted noise
    ("eps")."""
    return s.square() if space == "x0" else (1 - s).square()


def flow_dpm_step(x0: Tensor, x0_last: Tensor | None, z: Tensor, s_last: Tensor, s: Tensor, s_next: Tensor) -> Tensor:
    """One step of DPM-Solver++(2M) from level s to ``s_next``, with alpha = 1 - s and sigma = s.

    With ``lam = log(alpha / sigma)`` and ``h = lam_next - lam``:

        D       = x0 + (x0 - x0_last) h / (2 (lam - lam_last))
        z_next  = (s_next / s) z + alpha_next (1 - exp(-h)) D,   exp(-h) = (alpha s_next) / (alpha_next s)

    The step is of first order, which is Euler's, without ``x0_last``, where lam is infinite (s_last = 1 or s_next = 0), and where
    h is more than twice the step before. Grids of flows end at a level of 0.001 to 0.01, a jump of lam so large that the
    extrapolation would be worse than none: ours. Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    alpha, alpha_next = 1 - s, 1 - s_next
    d = x0
    if x0_last is not None and bool((s_next > 0).all()) and bool((s_last < 1).all()):
        lam = [torch.log((1 - x) / x) for x in (s_last, s, s_next)]
        ratio = (lam[2] - lam[1]) / (lam[1] - lam[0])
        d = x0 + torch.where(ratio <= 2, ratio / 2, 0.0) * (x0 - x0_last)
    return (s_next / s) * z + (alpha_next - alpha * s_next / s) * d


def flow_unipc_correct(x0: Tensor, outputs: tuple[Tensor, ...], z: Tensor, levels: tuple[Tensor, ...], s: Tensor) -> Tensor:
    """The corrector of UniPC (B(h) = e^-h - 1, data prediction): the latent at level s once more, now that ``x0``, the clean
    latent predicted there, is known.

    ``outputs`` are the clean latents predicted at the one or two ``levels`` before s, the newest last, and z is the latent at the
    newest of them. With ``lam``, h = lam(s) - lam(levels[-1]) and phi = e^-h - 1:

        z_s  = (s / s_last) z - (1 - s) phi (x0_last + D)
        D    = (x0 - x0_last) / 2                                          with one level before s
        D    = rho_1 (x0_prev - x0_last) / r + rho_2 (x0 - x0_last)        with two, r = (lam_prev - lam_last) / h
        rho_1 + rho_2 = b_1,  r rho_1 + rho_2 = b_2
        b_1  = (-phi / h - 1) / phi,  b_2 = 2 (-b_1 / h - 1 / (2 phi))

    Its predictor of second order is the step of DPM-Solver++(2M), :func:`flow_dpm_step`. Source: Zhao et al. 2023,
    arXiv:2302.04867, appendix E.
    """
    lam = [torch.log((1 - x) / x) for x in (*levels, s)]
    h = lam[-1] - lam[-2]
    phi = torch.expm1(-h)
    last, news = outputs[-1], x0 - outputs[-1]
    if len(outputs) == 1:
        d = news / 2
    else:
        r = (lam[-3] - lam[-2]) / h
        b_1 = (-phi / h - 1) / phi
        b_2 = 2 * (-b_1 / h - 1 / (2 * phi))
        rho = (b_1 - b_2) / (1 - r)
        d = rho * (outputs[-2] - last) / r + (b_1 - rho) * news
    return (s / levels[-1]) * z - (1 - s) * phi * (last + d)
