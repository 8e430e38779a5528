"""Noise levels: eps, v and flow keep the same promises, so that one body of a method serves all three."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from efface.equations.diffusion import ddim_step, x0_from_eps
from efface.equations.flow import (
    euler_step,
    flow_dpm_step,
    flow_unipc_correct,
    noise_from_velocity,
    velocity_of,
    x0_from_velocity,
)
from efface.errors import BadOption
from efface.methods import AP, ESD
from efface.models.flow import DPM, UNIPC, FlowSchedule, flow_schedule_of
from efface.models.levels import Levels
from efface.models.schedule import Schedule, plms_grid
from efface.models.tiny import tiny, tiny_flux, tiny_schedule, tiny_sd3

F64 = torch.float64
ON_FLOW = {"num_train_timesteps": 1000, "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
LEVELS: Mapping[str, Levels] = {
    "eps": tiny_schedule("epsilon"),
    "v": tiny_schedule("v_prediction"),
    "flow": flow_schedule_of({"num_train_timesteps": 1000, "shift": 3.0}, 16),
    "dynamic": flow_schedule_of({"num_train_timesteps": 1000, "use_dynamic_shifting": True}, 1024),
    "flux": flow_schedule_of({"num_train_timesteps": 1000, "use_dynamic_shifting": True}, 1024, even=True),
    "dpm": flow_schedule_of({**ON_FLOW, "_class_name": DPM}, 16, also=(DPM,)),
    "unipc": flow_schedule_of({**ON_FLOW, "_class_name": UNIPC}, 16, also=(UNIPC,)),
}
EACH = pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS.keys())


def pair(seed: int = 0, n: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 3, 3, generator=g, dtype=F64), torch.randn(n, 2, 3, 3, generator=g, dtype=F64)


@EACH
@pytest.mark.parametrize("number", [0, 20, 500, 990])
def test_conversions_are_inverse(levels: Levels, number: int) -> None:
    x0, n = pair()
    t = levels.numbered([number] * 3, torch.device("cpu"))
    if levels.prediction_type == "flow_prediction":
        t = t.double()  # else s has float32's rounding, and is the same in both directions all the same
    z = levels.noised(x0, n, t)
    alpha, sigma = levels.coefficients(t)
    torch.testing.assert_close(z, alpha.double() * x0 + sigma.double() * n, atol=0, rtol=0)
    out = levels.output(x0, n, t)
    # float32 levels of a diffusion limit ab + (1 - ab) = 1 to 1e-7, which 1 / alpha (at most 15) makes larger
    torch.testing.assert_close(levels.eps(out, z, t), n, atol=1e-5, rtol=0)
    torch.testing.assert_close(levels.x0(out, z, t), x0, atol=2e-5, rtol=0)
    torch.testing.assert_close(levels.prediction(out, z, t), levels.truth(x0, n, t), atol=1e-5, rtol=0)


@given(st.floats(0.001, 0.999), st.integers(0, 10))
def test_velocity_round_trips_in_float64(s: float, seed: int) -> None:
    (x0, n), level = pair(seed), torch.tensor(s, dtype=F64)
    z = (1 - level) * x0 + level * n
    v = velocity_of(x0, n)
    torch.testing.assert_close(x0_from_velocity(v, z, level), x0, atol=1e-14, rtol=0)
    torch.testing.assert_close(noise_from_velocity(v, z, level), n, atol=1e-14, rtol=0)


@given(st.floats(0.01, 1.0), st.floats(0.0, 1.0), st.integers(0, 10))
def test_euler_is_ddim_and_dpm_of_first_order(s: float, part: float, seed: int) -> None:
    """On the predicted pair: alpha' x0 + sigma' n. That is why one sampler serves both."""
    z, v = pair(seed)
    level, following = torch.tensor(s, dtype=F64), torch.tensor(part * s, dtype=F64)
    stepped = euler_step(v, z, level, following)
    x0, n = x0_from_velocity(v, z, level), noise_from_velocity(v, z, level)
    torch.testing.assert_close(stepped, (1 - following) * x0 + following * n, atol=1e-13, rtol=0)
    torch.testing.assert_close(flow_dpm_step(x0, None, z, level, level, following), stepped, atol=1e-12, rtol=0)


@given(st.floats(0.05, 0.9), st.floats(0.2, 0.9), st.floats(0.1, 0.9))
def test_euler_is_ddim_of_the_equivalent_diffusion(s: float, part: float, last: float) -> None:
    """z / sqrt(alpha^2 + sigma^2) has ab = alpha^2 / (alpha^2 + sigma^2) and the same noise."""
    z, v = pair(1)
    a, b = torch.tensor(s, dtype=F64), torch.tensor(part * s, dtype=F64)
    rho = [((1 - x) ** 2 + x**2).sqrt() for x in (a, b)]
    ab = [((1 - x) / r) ** 2 for x, r in zip((a, b), rho, strict=True)]
    n = noise_from_velocity(v, z, a)
    stepped = ddim_step(n, z / rho[0], ab[0], ab[1])
    torch.testing.assert_close(euler_step(v, z, a, b), rho[1] * stepped, atol=1e-12, rtol=0)
    torch.testing.assert_close(x0_from_eps(n, z / rho[0], ab[0]), x0_from_velocity(v, z, a), atol=1e-12, rtol=0)


@given(st.floats(0.3, 0.95), st.floats(0.4, 0.9), st.floats(0.4, 0.9), st.tuples(*[st.floats(-1, 1)] * 3))
def test_the_corrector_of_unipc_is_exact_for_a_parabola(
    s_prev: float, part: float, next_part: float, parabola: tuple[float, float, float]
) -> None:
    """z_s = (s / s_last) z + (1 - s) int e^(lam' - lam) x0(lam') dlam', where x0 is a polynomial of lam that three predictions
    tell: here the integral is summed."""
    levels = [torch.tensor(x, dtype=F64) for x in (s_prev, s_prev * part, s_prev * part * next_part)]
    lam = [torch.log((1 - x) / x) for x in levels]

    def x0(at: Tensor) -> Tensor:
        return parabola[0] + parabola[1] * at + parabola[2] * at**2

    z, nodes, weights = torch.tensor(0.7, dtype=F64), *np.polynomial.legendre.leggauss(20)
    half = (lam[2] - lam[1]) / 2
    inside = lam[1] + half * (1 + torch.from_numpy(nodes))
    integral = half * (torch.from_numpy(weights) * torch.exp(inside - lam[2]) * x0(inside)).sum()
    exact = levels[2] / levels[1] * z + (1 - levels[2]) * integral
    found = flow_unipc_correct(x0(lam[2]), (x0(lam[0]), x0(lam[1])), z, (levels[0], levels[1]), levels[2])
    torch.testing.assert_close(found, exact, atol=1e-9, rtol=1e-9)


def test_the_corrector_of_unipc_leaves_a_straight_line_as_it_is() -> None:
    x0, n = pair()
    s, s_next = torch.tensor(0.8, dtype=F64), torch.tensor(0.5, dtype=F64)
    z = (1 - s) * x0 + s * n
    for outputs, levels in (((x0,), (s,)), ((x0, x0), (torch.tensor(0.9, dtype=F64), s))):
        found = flow_unipc_correct(x0, outputs, z, levels, s_next)
        torch.testing.assert_close(found, (1 - s_next) * x0 + s_next * n, atol=1e-12, rtol=0)


def test_multistep_solvers_of_a_flow_follow_a_curved_path_better_than_euler() -> None:
    """x0 = mean of a Gaussian posterior: the exact path from z_1 is known, z_s = z_1 sqrt(alpha^2 tau^2 + s^2)."""
    tau = 0.5
    errors = {}
    for solver in ("ddim", "dpm", "unipc"):
        levels = flow_schedule_of({"num_train_timesteps": 1000, "shift": 1.0}, 16)
        z, past = torch.ones(1, 1, 1, 1, dtype=F64), None
        grid = [*levels.timesteps(12), levels.end]
        for t, following in pairwise(grid):
            s = t / 1000
            x0 = (1 - s) * tau**2 / ((1 - s) ** 2 * tau**2 + s**2) * z
            v = (z - x0) / s
            z, past = levels.step(v, z, t, following, past, solver)
        errors[solver] = abs(float(z) - tau)
    assert errors["dpm"] < 0.5 * errors["ddim"]
    assert errors["unipc"] < 0.5 * errors["ddim"]


@EACH
def test_grids_descend_to_the_end_and_levels_ascend(levels: Levels) -> None:
    grid = [*levels.timesteps(10), levels.end]
    assert len(grid) == 11
    assert all(a > b for a, b in pairwise(grid))
    t = levels.numbered(range(levels.size), torch.device("cpu"))
    assert len(t) == levels.size == 1000
    assert bool((t[1:] > t[:-1]).all())
    alpha, _ = levels.coefficients(levels.end)
    assert 0.9 < float(alpha) <= 1


def test_the_grid_is_the_scheduler_s_own() -> None:
    """With its double shift; recomputing it from the formula would end elsewhere."""
    grid = flow_schedule_of({"num_train_timesteps": 1000, "shift": 3.0}, 16).timesteps(28)
    assert grid[0] == 1000.0
    assert grid[-2:] == pytest.approx([110.9, 8.9], abs=0.06)  # huggingface/diffusers#13243


@EACH
@pytest.mark.parametrize("space", ["eps", "x0"])
def test_loss_weights_are_what_they_say(levels: Levels, space: str) -> None:
    """``MSE_space = w MSE_output`` at fixed z, for every kind of output."""
    x0, n = pair()
    t = levels.numbered([100, 400, 700], torch.device("cpu"))
    z = levels.noised(x0, n, t)
    a, b = (torch.randn(z.shape, generator=torch.Generator().manual_seed(i), dtype=F64) for i in (1, 2))
    read = levels.eps if space == "eps" else levels.x0
    direct = (read(a, z, t) - read(b, z, t)).square()
    torch.testing.assert_close(direct, levels.loss_weight(t, space).double() * (a - b).square(), rtol=1e-4, atol=0)


class Linear:
    """A network that knows x0 = A z + B c and tells it in its family's own way."""

    def __init__(self, levels: Levels) -> None:
        self.levels = levels

    def x0(self, z_0: Tensor, strength: float) -> Tensor:
        return 0.3 * z_0 + strength

    def output(self, clean: Tensor, z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (x.to(z) for x in self.levels.coefficients(t))
        noise = (z - alpha * clean) / sigma
        return self.levels.output(clean, noise, t)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_method_s_losses_are_the_same_in_every_family(eta: float) -> None:
    """In the space of clean latents: AP, ESD and AGE see one law, whatever the network outputs. Goals commute exactly."""
    from efface.equations.guidance import away_from

    x0, _ = pair(n=1)
    found, goals = [], []
    for name, model in (("eps", tiny()), ("v", tiny("v_prediction")), ("flow", tiny_sd3()), ("flux", tiny_flux())):
        levels, net = LEVELS[name], Linear(LEVELS[name])
        model.schedule = levels  # type: ignore[assignment]
        t = levels.numbered([400], torch.device("cpu"))
        z = levels.noised(x0, torch.full_like(x0, 0.5), t)
        anchor, target, student = (net.output(net.x0(x0, s), z, t) for s in (0.1, 0.7, 0.5))
        goal = away_from(anchor, target, eta)
        goals.append(levels.x0(goal, z, t))
        for method in (AP.preset("tiny", eta=eta, loss_space="x0"), ESD.preset("tiny", eta=eta, loss_space="x0")):
            found.append(float(method.mse(model, student, goal, t)))
    for goal in goals[1:]:
        torch.testing.assert_close(goal, goals[0], atol=1e-4, rtol=0)
    assert found == pytest.approx([found[0]] * len(found), rel=1e-4)
    assert found[0] > 0.1


def test_the_grid_of_flux_is_laid_evenly_before_it_is_shifted() -> None:
    """s = exp(mu) / (exp(mu) + 1 / r - 1) of r = 1, 3/4, 2/4, 1/4; that of the scheduler alone ends elsewhere."""
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (1024 - 256)
    expected = [1000 * np.exp(mu) / (np.exp(mu) + 1 / r - 1) for r in (1.0, 0.75, 0.5, 0.25)]
    assert LEVELS["flux"].timesteps(4) == pytest.approx(expected, rel=1e-6)
    assert LEVELS["dynamic"].timesteps(4) != pytest.approx(expected, rel=1e-2)


def test_at_the_noisiest_level_of_a_flow_guidance_still_acts() -> None:
    """Its eps is z itself there: a sampler that guided eps would make its first step without the prompt."""
    levels = LEVELS["flow"]
    z, v = pair()
    t = torch.full((3,), 1000.0)
    assert torch.equal(levels.eps(v, z, t), z)
    assert torch.equal(levels.prediction(v, z, t), v)


def test_families_are_told_apart() -> None:
    assert isinstance(LEVELS["eps"], Schedule)
    assert isinstance(LEVELS["flow"], FlowSchedule)
    kinds: list[Any] = [levels.prediction_type for levels in LEVELS.values()]
    assert kinds == ["epsilon", "v_prediction", *["flow_prediction"] * 5]


@EACH
@pytest.mark.parametrize("steps", [0, 1001])
def test_more_steps_than_levels_are_refused(levels: Levels, steps: int) -> None:
    with pytest.raises(BadOption, match=f"{steps} sampling steps"):
        levels.timesteps(steps)


def test_at_pure_noise_prediction_and_truth_are_of_v() -> None:
    """There eps is z whatever the network says: an attack that compares it with the noise would have no gradient."""
    plain = tiny_schedule("v_prediction")
    levels = dataclasses.replace(plain, alphas_cumprod=torch.cat([plain.alphas_cumprod[:-1], torch.zeros(1)]))
    x0, n = pair()
    last, t = levels.size - 1, torch.tensor([levels.size - 1, 500, levels.size - 1])
    z, out = levels.noised(x0, n, t), levels.output(x0, n, t)
    found = levels.prediction(out, z, t)
    torch.testing.assert_close(found, levels.truth(x0, n, t), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0], -x0[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(found[1], n[1], atol=1e-5, rtol=0)
    stepped, past = levels.step(found[:1], z[:1], last, 500, None, "dpm")
    torch.testing.assert_close(stepped, levels.noised(x0[:1], n[:1], 500), atol=1e-6, rtol=0)
    assert past is not None


@pytest.mark.parametrize("pure", [True, False])
def test_plms_from_the_noisiest_level_follows_the_truth(pure: bool) -> None:
    """With the true prediction every step is exact, the one that is named twice and the one from pure noise too."""
    plain = tiny_schedule("v_prediction")
    last = torch.zeros(1) if pure else plain.alphas_cumprod[-1:]
    levels = dataclasses.replace(plain, alphas_cumprod=torch.cat([plain.alphas_cumprod[:-1], last]), spacing="trailing")
    x0, n = pair()
    grid = [*plms_grid(levels.timesteps(6)), levels.end]
    z, past = levels.noised(x0, n, grid[0]), None
    for t, t_next in pairwise(grid):
        z, past = levels.step(levels.truth(x0, n, torch.tensor([t] * len(x0))), z, t, t_next, past, "plms")
        torch.testing.assert_close(z, levels.noised(x0, n, t_next), atol=1e-5, rtol=0)
