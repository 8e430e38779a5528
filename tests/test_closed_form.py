"""The closed-form solver against naive loops, against itself by other routes, and against its theorems. float64 throughout."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.equations.closed_form import (
    REGAIN,
    Edit,
    Moments,
    affordable,
    apply_edit,
    brought_back,
    condition_estimate,
    distinct,
    factored,
    fused,
    gram_of_maps,
    least_on_sphere,
    low_rank,
    moved,
    neighbour_moments,
    per_layer_edits,
    pin,
    preimage,
    reached,
    regained,
    right_factor,
    sealed,
    shared_edit,
    shared_matrix,
    singular_values,
    solved,
    span,
    weighted_gram,
    worst_neighbour,
)
from efface.equations.exact import halves, outer_sums, value
from efface.errors import IllPosed

F64 = torch.float64
CLOSE = {"rtol": 1e-8, "atol": 1e-8}  # solves of systems with condition numbers of a few thousand
seeds = st.integers(0, 2**31)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def problem(seed: int, r: int, p: int, d: int) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(n, generator=g, dtype=F64) + 0.5 for n in (r, p))
    return draw(seed, r, d), draw(seed + 1, r, d), a, draw(seed + 2, p, d), b


def naive(w, x, y, a, q, b, lam):  # type: ignore[no-untyped-def]
    """The official codes' sequence with plain loops and an inverse: W' = (lam W + sum ..)(lam I + sum ..)^-1."""
    left, right = lam * w, lam * torch.eye(w.shape[1], dtype=F64)
    for xi, yi, ai in zip(x, y, a, strict=True):
        left = left + ai * torch.outer(w @ yi, xi)
        right = right + ai * torch.outer(xi, xi)
    for qj, bj in zip(q, b, strict=True):
        left = left + bj * torch.outer(w @ qj, qj)
        right = right + bj * torch.outer(qj, qj)
    return left @ torch.linalg.inv(right)


@given(seeds, st.integers(1, 20), st.integers(0, 12), st.floats(0.05, 5))
def test_every_route_is_the_naive_solution(seed: int, r: int, p: int, lam: float) -> None:
    """Few rows take the kernel, few with many preserved ones one Cholesky, many rows the moments: one answer for any W."""
    d = 14
    x, y, a, q, b = problem(seed, r, p, d)
    for out in (3, 20):
        w = draw(seed + out, out, d)
        expected = naive(w, x, y, a, q, b, lam)
        edit = shared_edit(x, y, a, q, b, lam)
        torch.testing.assert_close(w @ edit.transform, expected, **CLOSE)
        torch.testing.assert_close(w @ solved(Moments.of(x, y, a, q, b), lam).transform, expected, **CLOSE)
        right, _ = right_factor(x, a, q, b, lam)
        (own,) = per_layer_edits([w], [y @ w.T], x, right)
        torch.testing.assert_close(w + own, expected, **CLOSE)
    assert (edit.right is not None) == (2 * r < d)


@given(seeds)
def test_per_layer_targets_share_the_factor_and_equal_the_naive_solution(seed: int) -> None:
    x, _, a, q, b = problem(seed, 4, 6, 12)
    right, _ = right_factor(x, a, q, b, 0.3)
    weights, goals = [draw(seed + 5, 7, 12), draw(seed + 6, 9, 12)], [draw(seed + 7, 4, 7), draw(seed + 8, 4, 9)]
    system = 0.3 * torch.eye(12, dtype=F64) + (x.T * a) @ x + (q.T * b) @ q
    for w, v, change in zip(weights, goals, per_layer_edits(weights, goals, x, right), strict=True):
        expected = (0.3 * w + (v.T * a) @ x + w @ (q.T * b) @ q) @ torch.linalg.inv(system)
        torch.testing.assert_close(w + change, expected, **CLOSE)


@given(seeds, st.integers(2, 20), st.integers(1, 3))
def test_pinned_rows_do_not_move_and_nothing_better_exists(seed: int, r: int, k: int) -> None:
    x, y, a, q, b = problem(seed, r, 5, 14)
    n, lam = draw(seed + 9, k, 14), 0.4
    edit, free = shared_edit(x, y, a, q, b, lam, n), shared_edit(x, y, a, q, b, lam)
    assert (moved(edit, n) - n).abs().max() < 1e-10 < (moved(free, n) - n).abs().max()

    def objective(d: torch.Tensor) -> torch.Tensor:
        erase = (a * (x + x @ d.T - y).square().sum(1)).sum()
        return erase + (b * (q @ d.T).square().sum(1)).sum() + lam * d.square().sum()

    d = edit.matrix.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(d), d)
    feasible = torch.eye(14, dtype=F64) - span(n) @ span(n).T  # directions that leave the pinned rows alone
    assert (gradient @ feasible).abs().max() < 1e-8
    assert gradient.abs().max() > 1e-3  # without the projector it is no minimum: the constraint costs something


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), cost=st.sampled_from([0.02, 0.1, 0.4]), k=st.integers(0, 2))
def test_a_prior_takes_from_the_targets_what_it_may_cost_and_no_more(seed: int, cost: float, k: int) -> None:
    x, y, a, q, b = problem(seed, 4, 3, 12)
    other, w = draw(seed + 1, 40, 12), draw(seed + 2, 30, 12)
    pinned, s = draw(seed + 3, k, 12) if k else None, gram_of_maps([w])
    moments, prior = Moments.of(x, y, a, q, b), weighted_gram(other, torch.ones(40))
    whole = reached(solved(moments, 0.1, pinned), x, y, s)
    off = (x @ solved(moments, 0.1, pinned).transform.T - y) @ w.T
    assert whole == pytest.approx(1 - float(off.norm() / ((x - y) @ w.T).norm()), abs=1e-9)
    edit, weight = affordable(moments, prior, 0.1, (x, y, s), cost, pinned)
    assert torch.equal(
        edit.matrix, solved(Moments(moments.gram, moments.shift, moments.keep + weight * prior), 0.1, pinned).matrix
    )
    # The weight is found to a hundredth of a power of ten, over which the reach cannot fall by more than this.
    assert reached(edit, x, y, s) == pytest.approx((1 - cost) * whole, rel=0.02)
    assert reached(edit, x, y, s) >= (1 - cost) * whole - 1e-6
    scaled = [5.0 * v for v in (x, y, q)]
    again, lighter = affordable(
        Moments.of(scaled[0], scaled[1], a, scaled[2], b),
        weighted_gram(7.0 * other, torch.ones(40)),
        2.5,
        (*scaled[:2], s),
        cost,
        pinned,
    )
    assert torch.allclose(again.matrix, edit.matrix, atol=1e-9), "longer vectors and another unit of the ridge are the same edit"
    assert lighter == pytest.approx(weight * 25 / 49, rel=1e-6)


def test_a_prior_that_costs_nothing_is_as_heavy_as_it_can_be() -> None:
    """Targets that act like themselves cannot lose anything."""
    x = draw(0, 3, 8)
    moments = Moments.of(x, x, torch.ones(3), x[:0], torch.ones(0))
    s, prior = gram_of_maps([draw(1, 9, 8)]), weighted_gram(draw(2, 5, 8), torch.ones(5))
    edit, weight = affordable(moments, prior, 0.5, (x, x, s), 0.1)
    assert reached(edit, x, x, s) == 1
    assert weight > 1e3 * float(moments.gram.trace() / prior.trace())
    assert not edit.matrix.any()


def test_limits() -> None:
    x, y, a, q, b = problem(3, 4, 5, 14)
    assert shared_edit(x, y, a, q, b, 1e9).matrix.abs().max() < 1e-6  # an infinite ridge: T = I
    kept = shared_edit(x, y, a, q, 1e9 * b, 0.1)
    assert (moved(kept, q) - q).abs().max() < 1e-6 < (moved(shared_edit(x, y, a, q, b, 0.1), q) - q).abs().max()
    one = shared_edit(x[:1], y[:1], torch.ones(1), q[:0], b[:0], 0.5)
    c, goal = x[0], y[0]
    expected = torch.outer(goal - c, c) / (0.5 + c @ c)  # one vector and nothing preserved: a rank-one update
    torch.testing.assert_close(one.matrix, expected, **CLOSE)


@given(seeds, st.integers(1, 9))
def test_moments_are_plain_sums_also_with_repeated_goals(seed: int, r: int) -> None:
    x, y, a, q, b = problem(seed, 9, 4, 6)
    y = y[torch.arange(9) % r]
    m = Moments.of(x, y, a, q, b)
    gram, shift = torch.zeros(6, 6, dtype=F64), torch.zeros(6, 6, dtype=F64)
    for xi, yi, ai in zip(x, y, a, strict=True):
        gram, shift = gram + ai * torch.outer(xi, xi), shift + ai * torch.outer(yi - xi, xi)
    torch.testing.assert_close(m.gram, gram, **CLOSE)
    torch.testing.assert_close(m.shift, shift, **CLOSE)
    torch.testing.assert_close(m.keep, sum(bj * torch.outer(qj, qj) for qj, bj in zip(q, b, strict=True)), **CLOSE)


def test_large_matrices_are_multiplied_in_float32_only_where_that_is_enough() -> None:
    w = draw(1, 512, 40).float()
    mild = Edit(0.1 * draw(2, 40, 40), None, 1.0)
    # W' nearly vanishes although W D does not: rounding W D in float32 would be large against W'.
    harsh = Edit(-torch.eye(40, dtype=F64) + 1e-4 * draw(3, 40, 40), None, 1.0)
    for edit in (mild, harsh):
        exact = w.double() @ edit.matrix
        error = ((w.double() + apply_edit(w, edit).double()) - (w.double() + exact)).norm() / (w.double() + exact).norm()
        rounding = (exact.float().double() - exact).norm() / (w.double() + exact).norm()
        assert error < 1e-6 + 2 * rounding
    single = (w @ harsh.matrix.float()).double()
    assert (single - w.double() @ harsh.matrix).norm() > 1e-6 * (w.double() @ harsh.transform).norm(), "the probe had to refuse"


@given(seeds, st.permutations(range(6)))
def test_concepts_add_in_any_order(seed: int, order: list[int]) -> None:
    parts = [Moments.of(*problem(seed + 10 * i, 2, 1, 8)) for i in range(6)]
    whole = sum((parts[i] for i in order[1:]), parts[order[0]])
    fresh = sum(parts[1:], parts[0])
    torch.testing.assert_close(solved(whole, 0.5).matrix, solved(fresh, 0.5).matrix, **CLOSE)


# -- numerics ----------------------------------------------------------------------------------------------------


@given(seeds, st.floats(-6, 3))
def test_condition_estimate_is_a_tight_lower_bound(seed: int, exponent: float) -> None:
    rows = draw(seed, 12, 10) * torch.logspace(0, exponent, 10, dtype=F64)
    system = rows.T @ rows + 1e-4 * torch.eye(10, dtype=F64)
    true = float(torch.linalg.cond(system))
    estimate = condition_estimate(system, torch.linalg.cholesky(system))
    # Twelve rounds of power iteration; two nearly equal eigenvalues converge slowly but then the ratio is nearly right too.
    assert 0.5 * true < estimate < 1.001 * true


def test_a_singular_system_warns_or_is_refused_but_never_answers_noise() -> None:
    rows = draw(0, 3, 8)
    with pytest.warns(RuntimeWarning, match=r"1e-\d\d of its mean diagonal entry was added"):
        _, condition = factored(rows.T @ rows)
    assert condition < 1e14
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert factored(rows.T @ rows + 1e-6 * torch.eye(8, dtype=F64))[1] < 1e9
    with pytest.raises(IllPosed, match="Raise lam"):
        factored(-torch.eye(8, dtype=F64))
    with pytest.raises(IllPosed):
        factored(torch.full((3, 3), torch.nan, dtype=F64))


def test_float64_keeps_digits_that_the_official_float32_inverse_loses() -> None:
    """Power-law rows and a small ridge, as text embeddings have: error of the edit W' - W against 50 more digits' worth of
    care (float64 per layer with the same system). The official sequence in float32 is off by far more than ours."""
    d, out = 96, 40
    scale = torch.arange(1, d + 1, dtype=F64) ** -1.0 * 10
    x, y = (draw(1, 200, d) * scale).float(), (draw(2, 200, d) * scale).float()
    w, a, none = draw(3, out, d).float(), torch.ones(200), torch.zeros(0, d)
    reference = naive(w.double(), x.double(), y.double(), a.double(), none.double(), a[:0].double(), 1e-3)
    ours = w.double() + apply_edit(w, shared_edit(x, y, a, none, a[:0], 1e-3)).double()
    gram = 1e-3 * torch.eye(d) + x.T @ x
    official = ((1e-3 * w + (w @ y.T) @ x) @ torch.inverse(gram)).double()
    error = [float((v - reference).norm() / reference.norm()) for v in (ours, official)]
    assert error[0] < 1e-6, error  # one rounding to float32 of W D
    assert error[1] > 10 * error[0], error


@given(seeds, st.permutations(range(8)))
@settings(max_examples=20)
def test_exact_sums_do_not_depend_on_order_and_come_back_to_nothing(seed: int, order: list[int]) -> None:
    rows = [(30 * draw(seed + i, 9, 6)).float().clamp(-64, 64) for i in range(8)]
    parts = [halves(r, 64.0) for r in rows]
    total = torch.zeros(3, 6, 6, dtype=F64)
    for i in order:
        total += outer_sums(parts[i], parts[i])
    whole = halves(torch.cat(rows), 64.0)
    assert torch.equal(total, outer_sums(whole, whole)), "the sum of parts has other bits than the whole"
    exact = sum(r.double().T @ r.double() for r in rows)
    torch.testing.assert_close(value(total, 64.0), exact, rtol=1e-9, atol=1e-6)  # 4e-9 per entry, times 30 x 72 rows
    for i in reversed(order[1:]):
        total -= outer_sums(parts[i], parts[i])
    assert torch.equal(total, outer_sums(parts[order[0]], parts[order[0]]))


def test_ordinary_sums_do_depend_on_order() -> None:
    """Why the integers are there: the same additions and subtractions in float64 come back with other last digits."""
    grams = [(30 * draw(i, 9, 6)).T @ (30 * draw(i, 9, 6)) for i in range(20)]
    total = grams[0].clone()
    for g in grams[1:]:
        total += g
    for g in grams[1:]:
        total -= g
    assert not torch.equal(total, grams[0])
    torch.testing.assert_close(total, grams[0], rtol=1e-9, atol=1e-9)


# -- forms -------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 20))
def test_low_rank_forms_and_singular_values(seed: int, r: int) -> None:
    x, y, a, q, b = problem(seed, r, 3, 14)
    edit = shared_edit(x, y, a, q, b, 0.3)
    left, right = low_rank(edit)
    assert left.shape[1] == min(r, 14)
    torch.testing.assert_close(left @ right, edit.matrix, rtol=1e-5, atol=1e-5)  # directions below 1e-6 are dropped
    torch.testing.assert_close(singular_values(edit), torch.linalg.svdvals(edit.transform), **CLOSE)
    torch.testing.assert_close(moved(edit, x), x @ edit.transform.T, **CLOSE)


def test_singular_values_of_a_rank_one_edit_of_a_wide_space() -> None:
    x, y, a, q, b = problem(5, 2, 0, 64)
    edit = shared_edit(x, y, a, q, b, 0.3)
    assert edit.right is not None
    torch.testing.assert_close(singular_values(edit), torch.linalg.svdvals(edit.transform), **CLOSE)


# -- the honest corollary ----------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 20))
def test_the_inverse_brings_the_concept_back_through_every_layer(seed: int, r: int) -> None:
    x, y, a, q, b = problem(seed, r, 3, 14)
    edit = shared_edit(x, y, a, q, b, 0.3)
    back = preimage(edit, x)
    for out in (5, 9):
        w = draw(seed + out, out, 14)
        edited = w + w @ edit.matrix
        torch.testing.assert_close(back @ edited.T, x @ w.T, rtol=1e-6, atol=1e-6)
        assert (x @ edited.T - x @ w.T).norm() > 1e-2 * (x @ w.T).norm(), "the edit erased nothing, so this shows nothing"


def test_the_residual_of_a_shared_matrix_is_what_the_mean_of_two_changes_misses() -> None:
    """W = I in two layers, changed by A and B: the least-squares T is I + (A + B) / 2."""
    eye, a, b = torch.eye(3), draw(40, 3, 3), 2 * draw(41, 3, 3)
    found, residual = shared_matrix([eye, eye], [eye + a, eye + b])
    torch.testing.assert_close(found.matrix, ((a + b) / 2).to(found.matrix), **CLOSE)
    expected = float((a - b).square().sum() / 2 / (a.square().sum() + b.square().sum())) ** 0.5
    assert residual == pytest.approx(expected, rel=1e-5)


def test_the_weights_alone_give_the_shared_matrix_away_and_per_layer_targets_do_not() -> None:
    x, y, a, q, b = problem(2, 3, 5, 12)
    base = [draw(20 + i, 9, 12) for i in range(4)]
    edit = shared_edit(x, y, a, q, b, 0.3)
    found, residual = shared_matrix(base, [w + w @ edit.matrix for w in base])
    assert residual < 1e-10
    torch.testing.assert_close(found.matrix, edit.matrix, **CLOSE)
    right, _ = right_factor(x, a, q, b, 0.3)
    torch.testing.assert_close(x @ brought_back(base, [w + w @ edit.matrix for w in base]).T, preimage(edit, x), **CLOSE)
    goals = [draw(30 + i, 3, 9) for i in range(4)]
    changes = per_layer_edits(base, goals, x, right)
    edited = [w + c for w, c in zip(base, changes, strict=True)]
    _, residual = shared_matrix(base, edited)
    assert residual > 0.1
    back = x @ brought_back(base, edited).T
    assert sum(float((back @ v.T - x @ w.T).norm()) for v, w in zip(edited, base, strict=True)) > 1, (
        "no embedding fits all layers"
    )


@given(seeds, st.floats(0, 2))
def test_bringing_back_minimises_its_objective(seed: int, ridge: float) -> None:
    base, edited = ([draw(seed + 10 * k + i, 9, 6) for i in range(3)] for k in (0, 1))
    c = draw(seed + 40, 6)
    found = (brought_back(base, edited, ridge) @ c).requires_grad_(True)
    missed = sum((v @ found - w @ c).square().sum() for v, w in zip(edited, base, strict=True))
    (gradient,) = torch.autograd.grad(missed + ridge * found.square().sum(), found)
    assert gradient.abs().max() < 1e-8
    assert float(missed.detach()) > 1e-3  # unrelated maps have no common preimage: the test is of a minimum, not of a solution


@given(seeds, st.floats(1e-3, 1e2))
def test_a_sealed_edit_has_no_way_back(seed: int, lam: float) -> None:
    x, y, a, q, b = problem(seed, 2, 6, 14)
    keep = torch.cat([y, q])
    for edit in (shared_edit(x, y, a, q, b, 0.3), Edit(shared_edit(x, y, a, q, b, 0.3).matrix, None, 1.0)):
        shut = sealed(edit, x, keep, lam)
        back = preimage(shut, x)
        missed = (moved(shut, back) - x).norm(dim=1) / x.norm(dim=1)
        u = span(x, 0.03)
        gram = moved(edit, keep).T @ moved(edit, keep)
        h = torch.linalg.inv(lam * gram.diagonal().mean() * torch.eye(14, dtype=F64) + gram) @ u
        v = torch.linalg.solve(u.T @ h, h.T)
        assert (v @ shut.transform).abs().max() < 1e-9 * v.norm(), "something still reaches the concept's direction"
        assert missed.min() > 0.999 / float(torch.linalg.matrix_norm(v, 2))
        assert preimage(edit, x).norm() > 0
        assert float(((moved(edit, preimage(edit, x)) - x).norm(dim=1) / x.norm(dim=1)).max()) < 1e-6
    damage = [float((moved(sealed(edit, x, keep, v), keep) - moved(edit, keep)).norm()) for v in (1e-3, 1e3)]
    assert damage[0] < damage[1], "a small lam protects the kept rows better"


# -- RECE's derivation -------------------------------------------------------------------------------------------


@given(seeds, st.sampled_from(REGAIN), st.floats(0.05, 2))
def test_regained_embeddings_minimise_their_objective(seed: int, kind: str, ridge: float) -> None:
    d, weights = 8, [draw(seed + i, 7, 8) for i in range(3)]
    p = torch.eye(d, dtype=F64) + 0.3 * draw(seed + 9, d, d)
    c, t = draw(seed + 10, d), draw(seed + 11, d)
    of_c, of_t = regained(gram_of_maps(weights), p, ridge, kind)
    assert (of_t is None) == (kind != "anchor")
    found = (of_c @ c + (0 if of_t is None else of_t @ t)).requires_grad_(True)
    answer = sum((w @ p @ found - w @ c).square().sum() for w in weights)
    extra = {
        "zero": ridge * found.square().sum(),
        "anchor": ridge * (found - t).square().sum(),
        "surrogate-2nd": ridge * (found - c).square().sum(),
        # ridge |W P c' - W P c|^2: stay near what the edited model now answers
        "surrogate-1st": ridge * sum((w @ p @ found - w @ p @ c).square().sum() for w in weights),
    }
    extra["surrogate-both"] = extra["surrogate-1st"] + extra["surrogate-2nd"]
    (gradient,) = torch.autograd.grad(answer + extra[kind], found)
    assert gradient.abs().max() < 1e-7
    (uphill,) = torch.autograd.grad(
        sum((w @ p @ (v := found.detach().clone().requires_grad_(True)) - w @ c).square().sum() for w in weights), v
    )
    assert uphill.abs().max() > 1e-6  # and without the regulariser it is no minimum


def test_without_a_ridge_the_derivation_is_the_inverse() -> None:
    p = torch.eye(8, dtype=F64) + 0.3 * draw(1, 8, 8)
    of_c, _ = regained(gram_of_maps([draw(2, 20, 8)]), p, 1e-12, "zero")
    torch.testing.assert_close(of_c, torch.linalg.inv(p), rtol=1e-6, atol=1e-6)


# -- RealEra's neighbours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [None, 3])
def test_sampled_neighbours_converge_to_the_analytic_moments(directions: int | None) -> None:
    """20,000 samples; a second moment of bounded variables has a relative error of about 1/sqrt(20,000) = 0.7 %: 5 % is seven
    standard errors, and the seed is fixed."""
    d, n, low, high = 10, 20_000, 0.8, 0.98
    e, y = 3 * draw(0, d), draw(1, d)
    basis = None if directions is None else draw(2, directions, d)
    gram, shift = neighbour_moments(e, y, low, high, basis)
    rho, u0 = e.norm(), e / e.norm()
    s = low + (high - low) * torch.rand(n, 1, generator=torch.Generator().manual_seed(3), dtype=F64)
    u = draw(4, n, d)
    if basis is not None:
        across = span(basis - torch.outer(basis @ u0, u0))
        u = draw(4, n, across.shape[1]) @ across.T
    u = u - torch.outer(u @ u0, u0)
    x = rho * (s * u0 + (1 - s * s).sqrt() * torch.nn.functional.normalize(u, dim=1))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(x, e[None]), s[:, 0], **CLOSE)
    torch.testing.assert_close(x.norm(dim=1), rho.expand(n), **CLOSE)
    assert (x.T @ x / n - gram).norm() < 0.05 * gram.norm()
    assert ((y - x).T @ x / n - shift).norm() < 0.05 * shift.norm()


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from(["any", "none", "across"]))
def test_least_on_sphere_is_the_global_minimum(seed: int, k: int, kind: str) -> None:
    """Also for an indefinite A, and in the hard case, where b has no part along the least eigenvector or is nothing."""
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.randn(k, k, generator=rng, dtype=F64), torch.randn(k, generator=rng, dtype=F64)
    a = a + a.T
    least = torch.linalg.eigh(a).eigenvectors[:, 0]
    b = {"any": b, "none": 0 * b, "across": 0.1 * (b - (b @ least) * least)}[kind]
    v = least_on_sphere(a, b)
    assert float(v.norm()) == pytest.approx(1, abs=1e-9)
    others = torch.nn.functional.normalize(torch.randn(300, k, generator=rng, dtype=F64), dim=1)
    values = ((others @ a) * others).sum(1) + 2 * others @ b
    assert float(v @ a @ v + 2 * b @ v) <= float(values.min()) + 1e-7  # what bisection leaves of |b|, |A| of order 10


@pytest.mark.parametrize("directions", [None, 3])
def test_no_sampled_neighbour_brings_the_target_closer_than_the_worst(directions: int | None) -> None:
    d, low, high = 8, 0.8, 0.98
    e, p, w = 3 * draw(0, d), torch.eye(d, dtype=F64) + 0.5 * draw(1, d, d), draw(2, 5, d)
    s = w.T @ w
    basis = None if directions is None else draw(3, directions, d)
    x, missed = worst_neighbour(e, p, s, low, high, basis)
    rho, u0 = e.norm(), e / e.norm()
    assert low - 1e-9 <= float(x @ u0 / rho) <= high + 1e-9
    assert float(x.norm()) == pytest.approx(float(rho))
    assert missed == pytest.approx(float((w @ (p @ x - e)).norm() / (w @ e).norm()))
    u = draw(4, 5000, d) if basis is None else draw(4, 5000, directions) @ basis
    u = torch.nn.functional.normalize(u - torch.outer(u @ u0, u0), dim=1)
    for c in torch.linspace(low, high, 9, dtype=F64).tolist():
        off = (rho * (c * u0 + (1 - c * c) ** 0.5 * u)) @ p.T - e
        assert missed <= float((off @ w.T).norm(dim=1).min() / (w @ e).norm()) + 1e-9


def test_isotropic_neighbours_shrink_everything_and_beyond_rows_repair_it() -> None:
    """By hand, the gain orthogonal to e is 1 - alpha rho^2 (1 - E s^2) / (d - 1) / g_perp."""
    d, rho, lam = 768, 28.0, 0.5
    e = torch.zeros(d, dtype=F64)
    e[0] = rho
    y = draw(1, d)
    gram, shift = neighbour_moments(e, y, 0.9, 0.9, None)
    per = rho**2 / (d - 1)
    for alpha, beta in ((1.0, 0.0), (10.0, 0.0), (1.0, 10.0)):
        keep = beta * per * (torch.eye(d, dtype=F64) - torch.outer(e, e) / rho**2)  # beyond-concept rows orthogonal to e
        edit = solved(Moments(alpha * gram, alpha * shift, keep), lam)
        expected = 1 - alpha * per * (1 - 0.81) / (lam + alpha * per * (1 - 0.81) + beta * per)
        gain = edit.transform[1:, 1:].diagonal().mean()
        assert float(gain) == pytest.approx(expected, rel=1e-9)
        # 0.72, 0.22 and 0.98 are gains that were measured on samples; |e| = 28 is our guess of its scale.
        assert float(gain) == pytest.approx({(1.0, 0.0): 0.72, (10.0, 0.0): 0.22, (1.0, 10.0): 0.98}[alpha, beta], abs=0.02)


# -- MACE's fusion -----------------------------------------------------------------------------------------------


def test_fusion_is_the_minimum_of_its_objective() -> None:
    d, out, n, lam = 8, 6, 3, 0.2
    w0 = draw(0, out, d)
    refinement = Edit(0.1 * draw(1, d, d), None, 1.0)
    w = w0 @ refinement.transform
    ups, downs = draw(2, n, out, 1), draw(3, n, 1, d)
    rows, prior = [draw(10 + i, 5, d) for i in range(n)], draw(20, 7, d)
    grams = torch.stack([r.T @ r for r in rows])
    keep = 0.4 * prior.T @ prior
    lower, _ = factored(grams.sum(0) + keep + lam * torch.eye(d, dtype=F64))
    back = -torch.cholesky_solve(keep @ refinement.matrix.T, lower).T  # (I - T) P G^-1
    v = (w + fused(ups, downs, grams, lower) + w0 @ back).requires_grad_(True)
    objective = lam * (v - w).square().sum() + 0.4 * (prior @ (v - w0).T).square().sum()
    for r, up, down in zip(rows, ups, downs, strict=True):
        objective = objective + (r @ (v - w - up @ down).T).square().sum()
    (gradient,) = torch.autograd.grad(objective, v)
    assert gradient.abs().max() < 1e-9
    assert (v - w).norm() > 0.1


def test_pin_works_on_a_factor_as_on_the_whole() -> None:
    x, y, a, q, b = problem(1, 3, 4, 14)
    n = draw(8, 2, 14)
    lower, _ = factored(0.3 * torch.eye(14, dtype=F64) + (x.T * a) @ x + (q.T * b) @ q)
    d = shared_edit(x, y, a, q, b, 0.3).matrix
    low, _ = right_factor(x, a, q, b, 0.3, n)
    torch.testing.assert_close((y - x).T @ low, pin(d, lower, n), **CLOSE)


@given(st.integers(0, 2**31), st.integers(0, 40), st.integers(1, 6))
def test_distinct_rows_are_each_there_once(seed: int, n: int, d: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 3, (n, d), generator=rng).float()
    found, which = distinct(rows)
    assert torch.equal(found[which], rows)
    assert len(found) == len({tuple(row) for row in rows.tolist()})


def test_rows_with_one_projection_are_told_apart() -> None:
    """Rows that differ across the direction only have equal keys, or nearly: all of them must come back."""
    direction = torch.cos(torch.arange(2, dtype=torch.float64))
    across = torch.stack([-direction[1], direction[0]])
    rows = torch.stack([torch.zeros(2, dtype=torch.float64), across * 2.0**-60, across * 2.0**60])
    found, which = distinct(rows)
    assert torch.equal(found[which], rows)
