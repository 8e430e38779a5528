"""The variance-preserving diffusion: conversions between eps, v and x0, adding noise, and the steps
of samplers.

Throughout ``z_t = sqrt(ab) x0 + sqrt(1 - ab) eps``, where ``ab`` is the cumulative alpha of
timestep t, broadcastable to z_t.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def noised(x0: Tensor, eps: Tensor, ab: Tensor) -> Tensor:
    """The clean latent x0 with the given noise at the noise level of ``ab``: the forward process
    ``q(z_t | x0)``."""
    return ab.sqrt() * x0 + (1 - ab).sqrt() * eps


def v_of(x0: Tensor, eps: Tensor, ab: Tensor) -> Tensor:
    """The velocity of clean latent and noise: ``v = sqrt(ab) eps - sqrt(1 - ab) x0``."""
    return ab.sqrt() * eps - (1 - ab).sqrt() * x0


def eps_from_v(v: Tensor, z_t: Tensor, ab: Tensor) -> Tensor:
    """The noise that a predicted velocity means: ``eps = sqrt(ab) v + sqrt(1 - ab) z_t``."""
    return ab.sqrt() * v + (1 - ab).sqrt() * z_t


def v_from_eps(eps: Tensor, z_t: Tensor, ab: Tensor) -> Tensor:
    """The velocity that a predicted noise means: the inverse of :func:`eps_from_v` at fixed z_t."""
    return (eps - (1 - ab).sqrt() * z_t) / ab.sqrt()


def x0_from_eps(eps: Tensor, z_t: Tensor, ab: Tensor) -> Tensor:
    """The predicted clean latent ``(z_t - sqrt(1 - ab) eps) / sqrt(ab)``."""
    return (z_t - (1 - ab).sqrt() * eps) / ab.sqrt()


def ddim_step(eps: Tensor, z_t: Tensor, ab: Tensor, ab_next: Tensor) -> Tensor:
    """One step of deterministic DDIM (eta = 0) from noise level ``ab`` to ``ab_next``."""
    return noised(x0_from_eps(eps, z_t, ab), eps, ab_next)


def with_fresh_noise(
    z_t: Tensor,
    z_next: Tensor,
    now: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    eta: Tensor,
    scale: Tensor,
    noise: Tensor,
) -> Tensor:
    """A deterministic step from z_t to z_next with part of its noise replaced by fresh noise: the step of DDIM with ``eta > 0``.

    ``now`` and ``after`` are (alpha, sigma) of the two levels, of any family with ``z = alpha x0 + sigma e``. The two latents
    determine what the network predicted, e = (alpha z_next - alpha' z_t) / (alpha sigma' - alpha' sigma), where a dash marks the
    level after the step. Then

        s      = eta (sigma' / sigma) sqrt(sigma^2 - (alpha / alpha')^2 sigma'^2)
        z_next + (sqrt|sigma'^2 - s^2| - sigma') e + scale s noise

    eta = 1 has the variance of the posterior (DDPM). For eta > 1 the root may be of a negative number, whose absolute value is
    taken, and ``scale`` > 1 adds more noise than the level has: neither is a sampler any more, which is what a probe wants.
    """
    (a, s), (a_next, s_next) = now, after
    e = (a * z_next - a_next * z_t) / (a * s_next - a_next * s)
    fresh = eta * (s_next / s) * (s * s - (a / a_next * s_next) ** 2).clamp_min(0).sqrt()
    return z_next + ((s_next * s_next - fresh * fresh).abs().sqrt() - s_next) * e + scale * fresh * noise


def spherical(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Between two latents (B, C, h, w) along the great circle, so that the length stays that of a noise latent:
    ``(sin((1 - share) w) a + sin(share w) b) / sin w``, where w is the angle between them."""
    cos = (a * b).flatten(1).sum(1) / (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1))
    w = cos.clamp(-1 + 1e-7, 1 - 1e-7).arccos().reshape(-1, 1, 1, 1)
    return (torch.sin((1 - share) * w) * a + torch.sin(share * w) * b) / torch.sin(w)


def x0_loss_weight(ab: Tensor, prediction: str = "epsilon") -> Tensor:
    """The weight w of ``MSE_x0 = w MSE_output`` at fixed z_t.

    w is ``(1 - ab) / ab``, the inverse signal-to-noise ratio, for a network that predicts noise,
    and ``1 - ab`` for one that predicts v.
    """
    return 1 - ab if prediction == "v_prediction" else (1 - ab) / ab


def eps_loss_weight(ab: Tensor, prediction: str = "epsilon") -> Tensor:
    """The weight w of ``MSE_eps = w MSE_output`` at fixed z_t: 1 for a network that predicts noise,
    ``ab`` for one that predicts v."""
    return ab if prediction == "v_prediction" else torch.ones_like(ab)


def dpm_step(x0: Tensor, x0_last: Tensor | None, z_t: Tensor, ab_last: Tensor, ab: Tensor, ab_next: Tensor) -> Tensor:
    """One step of DPM-Solver++(2M) from noise level ``ab`` to ``ab_next``.

    With ``lam = log(sqrt(ab) / sqrt(1 - ab))``, ``h = lam_next - lam`` and ``r = (lam - lam_last) /
    h``:

        D        = x0 + (x0 - x0_last) / (2 r)
        z_next   = sqrt((1 - ab_next) / (1 - ab)) z_t + sqrt(ab_next) (1 - exp(-h)) D

    x0 and x0_last are the predicted clean latents here and one step before. Without the latter, or
    where ``ab_next`` is 1 and lam infinite, the step is of first order, which is DDIM. Source: Lu
    et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    ratio = ((1 - ab_next) / (1 - ab)).sqrt()
    fade = (ab / ab_next).sqrt() * ratio  # exp(-h), finite where h is not
    d = x0
    if x0_last is not None and bool((ab_next < 1).all()):
        lam = [0.5 * torch.log(a / (1 - a)) for a in (ab_last, ab, ab_next)]
        d = x0 + (x0 - x0_last) * (lam[2] - lam[1]) / (2 * (lam[1] - lam[0]))
    return ratio * z_t + ab_next.sqrt() * (1 - fade) * d


def multistep(past: Sequence[Tensor]) -> Tensor:
    """The prediction that PLMS steps with, from up to four predictions at equidistant levels, the
    newest last.

    It is the Adams-Bashforth formula of that order. Source: Liu et al. 2022, arXiv:2202.09778,
    equation 12 and those that start it.
    """
    weights = {1: (1,), 2: (-1 / 2, 3 / 2), 3: (5 / 12, -16 / 12, 23 / 12), 4: (-9 / 24, 37 / 24, -59 / 24, 55 / 24)}
    return sum(w * e for w, e in zip(weights[len(past)], past, strict=True))
