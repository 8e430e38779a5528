"""Every equation against a mathematical oracle, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efface.equations.attention import column_norm, probabilities, pulled
from efface.equations.closed_form import Edit, apply_edit, shared_edit
from efface.equations.diffusion import (
    ddim_step,
    eps_from_v,
    eps_loss_weight,
    noised,
    v_from_eps,
    v_of,
    x0_from_eps,
    x0_loss_weight,
)
from efface.equations.guidance import away_from, guided
from efface.equations.simplex import entropy, gumbel_noise, gumbel_softmax, largest, spread
from efface.equations.steps import into_ball, normalised_ascent, shrunk

F64 = torch.float64
CLOSE = {"rtol": 1e-10, "atol": 1e-10}  # a few float64 operations on numbers of order one
seeds = st.integers(0, 2**31)
levels = st.floats(0.005, 0.995)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@given(seeds, levels)
def test_parameterizations_round_trip(seed: int, level: float) -> None:
    x0, eps, ab = draw(seed, 2, 4, 3, 3), draw(seed + 1, 2, 4, 3, 3), torch.tensor(level, dtype=F64)
    z = noised(x0, eps, ab)
    torch.testing.assert_close(x0_from_eps(eps, z, ab), x0, rtol=1e-9, atol=1e-9)
    v = v_of(x0, eps, ab)
    torch.testing.assert_close(eps_from_v(v, z, ab), eps, **CLOSE)
    torch.testing.assert_close(v_from_eps(eps, z, ab), v, rtol=1e-9, atol=1e-9)


@given(seeds, levels, st.floats(-3, 3))
def test_goals_commute_with_the_parameterization(seed: int, level: float, eta: float) -> None:
    """Affine combinations whose coefficients sum to 1 mean the same in eps and in v."""
    z, a, e, ab = draw(seed, 4), draw(seed + 1, 4), draw(seed + 2, 4), torch.tensor(level, dtype=F64)
    in_v = away_from(v_from_eps(a, z, ab), v_from_eps(e, z, ab), eta)
    torch.testing.assert_close(eps_from_v(in_v, z, ab), away_from(a, e, eta), rtol=1e-8, atol=1e-8)


def test_two_conventions_of_esd_are_one() -> None:
    anchor, e = draw(1, 5), draw(2, 5)
    new_sd = e - 2.0 * (e - anchor)  # esd_sd.py with negative_guidance 2
    torch.testing.assert_close(away_from(anchor, e, 1.0), new_sd, **CLOSE)
    torch.testing.assert_close(away_from(anchor, e, 0.0), anchor, **CLOSE)  # SDXL's eta 1 = plain mapping
    assert not torch.allclose(away_from(anchor, e, 1.0), anchor)


@given(seeds, st.floats(-2, 10))
def test_guidance_is_linear_and_hits_its_ends(seed: int, scale: float) -> None:
    a, b = draw(seed, 6), draw(seed + 1, 6)
    torch.testing.assert_close(guided(a, b, 0.0), a, **CLOSE)
    torch.testing.assert_close(guided(a, b, 1.0), b, **CLOSE)
    torch.testing.assert_close(guided(a, b, scale), (1 - scale) * a + scale * b, **CLOSE)


@given(seeds, levels)
def test_loss_weights_turn_the_output_s_error_into_that_of_x0_and_of_eps(seed: int, level: float) -> None:
    z, a, b, ab = draw(seed, 8), draw(seed + 1, 8), draw(seed + 2, 8), torch.tensor(level, dtype=F64)
    output = (a - b).square().mean()
    x0_error = (x0_from_eps(a, z, ab) - x0_from_eps(b, z, ab)).square().mean()
    torch.testing.assert_close(x0_error, x0_loss_weight(ab) * output, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(eps_loss_weight(ab), torch.ones_like(ab))
    # The same numbers as predictions of v.
    noise = [eps_from_v(v, z, ab) for v in (a, b)]
    clean = [x0_from_eps(e, z, ab) for e in noise]
    torch.testing.assert_close(
        (noise[0] - noise[1]).square().mean(), eps_loss_weight(ab, "v_prediction") * output, rtol=1e-8, atol=1e-10
    )
    torch.testing.assert_close(
        (clean[0] - clean[1]).square().mean(), x0_loss_weight(ab, "v_prediction") * output, rtol=1e-8, atol=1e-10
    )


@given(seeds, levels, levels)
def test_ddim_with_the_true_noise_moves_along_the_forward_process(seed: int, a: float, b: float) -> None:
    x0, eps = draw(seed, 5), draw(seed + 1, 5)
    ab, ab_next = torch.tensor(a, dtype=F64), torch.tensor(b, dtype=F64)
    torch.testing.assert_close(ddim_step(eps, noised(x0, eps, ab), ab, ab_next), noised(x0, eps, ab_next), rtol=1e-8, atol=1e-8)


@given(seeds, st.integers(2, 30), st.floats(0.05, 5))
def test_gumbel_rows_lie_on_the_simplex(seed: int, n: int, tau: float) -> None:
    logits = draw(seed, n).float()
    noise = gumbel_noise((n,), torch.Generator().manual_seed(seed))
    soft, hard = (gumbel_softmax(logits, noise, tau, hard=h) for h in (False, True))
    for y in (soft, hard):
        assert y.min() >= 0
        assert y.sum().item() == pytest.approx(1, abs=1e-5)  # float32 softmax of 30 entries
    assert hard.argmax() == soft.argmax()
    first, second = (logits + noise).sort(descending=True).values[:2]
    if first - second > 1e-5 * tau:  # below that, the two may round to one float32 number in the softmax
        assert soft.argmax() == (logits + noise).argmax()
    assert hard.max().item() == pytest.approx(1, abs=1e-6)


def test_hard_gradient_is_the_soft_gradient_and_low_temperature_is_one_hot() -> None:
    noise, w = gumbel_noise((7,), torch.Generator().manual_seed(3)), draw(4, 7).float()
    grads = []
    for hard in (True, False):
        logits = torch.zeros(7, requires_grad=True)
        (gumbel_softmax(logits, noise, 0.7, hard) * w).sum().backward()
        grads.append(logits.grad)
    torch.testing.assert_close(grads[0], grads[1])
    assert gumbel_softmax(torch.zeros(7), noise, 1e-3, hard=False).max() > 1 - 1e-6
    assert gumbel_softmax(torch.zeros(7), noise, 1e3, hard=False).max() < 0.2


def test_gumbel_noise_has_the_gumbel_mean_and_variance() -> None:
    """20,000 draws; each bound is five standard errors, so a false alarm comes once in a million seeds; the seed is fixed."""
    g = gumbel_noise((20_000,), torch.Generator().manual_seed(0)).double()
    se = math.pi / math.sqrt(6 * 20_000)
    assert abs(g.mean().item() - 0.5772156649) < 5 * se
    assert g.var().item() == pytest.approx(math.pi**2 / 6, rel=0.05)


def test_entropy_ends() -> None:
    assert entropy(torch.zeros(10)).item() == pytest.approx(math.log(10), rel=1e-6)
    assert entropy(torch.tensor([100.0, 0.0, 0.0])).item() == pytest.approx(0, abs=1e-6)


# -- attention -------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 4), st.integers(1, 6), st.integers(1, 9))
def test_probabilities_are_what_fused_attention_multiplies_with(seed: int, heads: int, pixels: int, tokens: int) -> None:
    q, k, v = (draw(seed + i, 2, n, heads * 3).float() for i, n in enumerate((pixels, tokens, tokens)))
    p = probabilities(q, k, heads)
    assert p.shape == (2, heads, pixels, tokens)
    torch.testing.assert_close(p.sum(-1), torch.ones(2, heads, pixels))
    split = [x.unflatten(-1, (heads, 3)).transpose(1, 2) for x in (q, k, v)]
    fused = torch.nn.functional.scaled_dot_product_attention(*split)
    torch.testing.assert_close(p @ split[2], fused, rtol=1e-4, atol=1e-5)  # float32, another order of the same sum


@given(seeds)
def test_column_norm_is_the_norm_of_the_listed_entries(seed: int) -> None:
    maps = [draw(seed, 2, 3, 4, 5), draw(seed + 1, 2, 1, 6, 5)]
    chosen = [[1, 3], [0]]
    columns = torch.zeros(2, 5, dtype=torch.bool)
    for row, positions in enumerate(chosen):
        columns[row, positions] = True
    for row, positions in enumerate(chosen):
        entries = [float(x) for a in maps for head in a[row] for pixel in head for x in pixel[positions]]
        expected = math.sqrt(math.fsum(x * x for x in entries))
        assert column_norm(maps, columns)[row].item() == pytest.approx(expected, rel=1e-10)
        assert column_norm(maps, columns, rms=True)[row].item() == pytest.approx(expected / math.sqrt(len(entries)), rel=1e-10)
        # A row is the same alone: a batch is two single rows.
        alone = column_norm([a[row : row + 1] for a in maps], columns[row : row + 1])
        torch.testing.assert_close(column_norm(maps, columns)[row : row + 1], alone, **CLOSE)


def test_only_the_rms_forgets_resolution_and_number_of_tokens() -> None:
    small, large = ([torch.full((1, 2, n, 7), 0.25, dtype=F64)] for n in (4, 64))
    one, three = (torch.arange(7)[None] < n for n in (1, 3))
    for columns in (one, three):
        for maps in (small, large):
            assert column_norm(maps, columns, rms=True).item() == pytest.approx(0.25)
    assert column_norm(large, three).item() == pytest.approx(math.sqrt(48) * column_norm(small, one).item())


@given(seeds, st.floats(0, 1), st.floats(0.1, 3))
def test_pulling_keeps_directions_and_closes_the_gap_at_its_rate(seed: int, rate: float, length: float) -> None:
    rows = draw(seed, 4, 6)
    out = pulled(rows, length, rate)
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(rows, out), torch.ones(4, dtype=F64), **CLOSE)
    gap, left = ((r.norm(dim=-1) - length).abs() for r in (rows, out))
    torch.testing.assert_close(left, (1 - rate) * gap, rtol=1e-8, atol=1e-10)


# -- closed form -----------------------------------------------------------------------------------------------------


def problem(seed: int, r: int, p: int, d: int, out: int) -> tuple[torch.Tensor, ...]:
    return draw(seed, r, d), draw(seed + 1, r, d), draw(seed + 2, p, d), draw(seed + 3, out, d)


def naive_edit(w, x, y, a, q, b, lam):  # type: ignore[no-untyped-def]
    """The double loop of the papers: one system per weight matrix."""
    left, right = lam * w.clone(), lam * torch.eye(w.shape[1], dtype=F64)
    for xi, yi, ai in zip(x, y, a, strict=True):
        left += ai * torch.outer(w @ yi, xi)
        right += ai * torch.outer(xi, xi)
    for qj, bj in zip(q, b, strict=True):
        left += bj * torch.outer(w @ qj, qj)
        right += bj * torch.outer(qj, qj)
    return left @ torch.linalg.inv(right)


@given(seeds, st.integers(1, 6), st.integers(0, 6), st.floats(0.05, 5))
def test_shared_edit_equals_the_double_loop_for_every_layer(seed: int, r: int, p: int, lam: float) -> None:
    x, y, q, _ = problem(seed, r, p, 8, 5)
    a, b = draw(seed + 5, r).abs() + 0.1, draw(seed + 6, p).abs() + 0.1
    d = shared_edit(x, y, a, q, b, lam).matrix
    for layer in range(3):
        w = draw(seed + 10 + layer, 5, 8)
        # 1e-7: the oracle inverts a matrix whose condition number can reach 1e5 at the smallest ridge
        torch.testing.assert_close(w + w @ d, naive_edit(w, x, y, a, q, b, lam), rtol=1e-7, atol=1e-7)


def test_shared_edit_is_the_minimum_of_its_objective() -> None:
    x, y, q, w = problem(0, 3, 4, 8, 5)
    a, b, lam = torch.rand(3, dtype=F64) + 0.5, torch.rand(4, dtype=F64) + 0.5, 0.3

    def objective(v: torch.Tensor) -> torch.Tensor:
        erase = (a * ((x @ v.T) - (y @ w.T)).square().sum(1)).sum()
        keep = (b * ((q @ v.T) - (q @ w.T)).square().sum(1)).sum()
        return erase + keep + lam * (v - w).square().sum()

    v = (w + w @ shared_edit(x, y, a, q, b, lam).matrix).requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(v), v)
    assert gradient.abs().max() < 1e-10
    start = w.clone().requires_grad_(True)
    assert torch.autograd.grad(objective(start), start)[0].abs().max() > 1  # and the start is no minimum
    assert objective(v) < objective(w)


def test_limits_of_the_edit() -> None:
    x, y, q, _ = problem(7, 2, 3, 8, 5)
    one, some = torch.ones(2, dtype=F64), torch.ones(3, dtype=F64)
    edit = lambda lam, b=1.0: shared_edit(x, y, one, q, b * some, lam).matrix  # noqa: E731
    assert edit(1e9).abs().max() < 1e-7  # a large ridge changes nothing
    assert edit(0.1).norm() > edit(1.0).norm() > edit(10.0).norm()
    assert (q @ edit(0.1, 1e9).T).abs().max() < 1e-6 < (q @ edit(0.1, 1e-3).T).abs().max()  # preserved rows stay, if asked to
    torch.testing.assert_close(x + x @ edit(1e-9, 1e-9).T, y, rtol=1e-5, atol=1e-5)  # nothing else to keep: exact erasure
    assert shared_edit(x, x, one, q, some, 0.5).matrix.abs().max() == 0  # mapping a concept to itself is no edit


def test_apply_edit_rounds_once() -> None:
    w, d = draw(1, 5, 8).float(), draw(2, 8, 8)
    change = apply_edit(w, Edit(d, None, 1.0))
    torch.testing.assert_close(change.double(), w.double() @ d, rtol=1e-6, atol=1e-6)
    assert change.dtype == torch.float32


@given(seeds, st.integers(1, 8), st.integers(1, 8))
def test_the_largest_entries_are_a_mixture_of_at_most_k(seed: int, n: int, k: int) -> None:
    y = torch.softmax(draw(seed, 3, n), dim=-1)
    kept = largest(y, k)
    assert bool((kept >= 0).all())
    torch.testing.assert_close(kept.sum(-1), torch.ones(3, dtype=F64))
    assert int((kept > 0).sum(-1).max()) <= min(k, n)
    assert torch.equal(kept.argmax(-1), y.argmax(-1))
    if k >= n:
        assert torch.equal(kept, y)


@given(seeds, st.integers(1, 30), st.integers(1, 12))
def test_spread_picks_distinct_entries_over_the_range(seed: int, m: int, n: int) -> None:
    values = draw(seed, m)
    picked = spread(values, n).tolist()
    assert 1 <= len(picked) <= min(m, n)
    assert picked == sorted(set(picked))
    if n >= m:
        assert picked == list(range(m))


def test_spread_finds_separated_clusters() -> None:
    values = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1, 5.2, 9.0, 9.1, 9.2])
    assert [round(float(values[i])) for i in spread(values, 3)] == [0, 5, 9]


@given(seeds, st.floats(1e-4, 1.0))
def test_normalised_ascent_has_exactly_its_length_and_rows_without_gradient_stay(seed: int, rate: float) -> None:
    """The length of a step is a share of the length of the embedding."""
    p, g = draw(seed, 3, 4, 5), draw(seed + 1, 3, 4, 5)
    g[2] = 0
    moved = normalised_ascent(p, g, rate) - p
    lengths = moved.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths[:2], rate * p.flatten(1).norm(dim=1)[:2])
    assert lengths[2] == 0
    assert bool(((moved * g).flatten(1).sum(1)[:2] > 0).all()), "not uphill"


@given(seeds, st.floats(0.01, 2.0))
def test_projection_into_the_ball_is_idempotent_and_inside(seed: int, radius: float) -> None:
    centre, p = draw(seed, 4, 6), draw(seed, 4, 6) + 3 * draw(seed + 1, 4, 6)
    once = into_ball(p, centre, radius)
    distance = (once - centre).norm(dim=1)
    assert bool((distance <= radius * centre.norm(dim=1) * (1 + 1e-12)).all())
    torch.testing.assert_close(into_ball(once, centre, radius), once)
    assert torch.equal(into_ball(centre, centre, radius), centre)


def test_shrinking_is_the_proximal_step_of_an_l2_penalty() -> None:
    """argmin_v |v - w|^2 + beta |v - origin|^2 with rho = beta / (1 + beta)."""
    w, origin, beta = draw(0, 5), draw(1, 5), 0.3
    v = shrunk(w, origin, beta / (1 + beta)).requires_grad_(True)
    ((v - w).square().sum() + beta * (v - origin).square().sum()).backward()
    assert v.grad is not None
    assert float(v.grad.abs().max()) < 1e-12
    assert torch.equal(shrunk(w, origin, 0.0), w)
