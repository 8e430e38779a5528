"""Options and loss terms do what they say: values from the equations, on planted predictions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from efface.concepts.request import EraseRequest
from efface.equations.statistics import clustered_bootstrap, newcombe_paired, percentile_interval, sign_flip
from efface.equations.subspace import triggers
from efface.errors import MethodError
from efface.evaluation.aggregate import _scored, scores
from efface.evaluation.attack import _key as attack_key
from efface.evaluation.driver import _key as evaluation_key
from efface.evaluation.profiles import PROFILES
from efface.evaluation.records import Row
from efface.guards import SAFREE
from efface.methods import AGE, AP, ESD, UCE, AdvUnlearn, Fixed, RAPAttack
from efface.models.load import load_model
from efface.models.select import selection
from efface.preservation.candidates import candidates
from efface.preservation.gumbel import Gumbel
from efface.preservation.pgd import PGD
from efface.training import Run, training

# -- loss terms ------------------------------------------------------------------------------------------------------

TARGET, NEUTRAL, OTHER, STUDENT = 0.7, 0.2, -0.4, 0.1
"""What the frozen network answers for the target, the empty prompt and every other; and the student for anything."""
EXACT = {"rel": 1e-4}  # float32 means of equal numbers


def planted(kind: str) -> Any:
    """The tiny model with constant outputs. The student's depend on its weights and its text, with zero slope."""
    model = load_model(kind)
    told = {TARGET: model.encode(["cat"]).tokens[0], NEUTRAL: model.encode([""]).tokens[0]}
    student_of = model.student

    def answer(row: torch.Tensor) -> float:
        return next((value for value, tokens in told.items() if torch.equal(row, tokens)), OTHER)

    def predict(z: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
        flat = 0 * c.tokens.flatten(1).sum(1)
        return torch.zeros_like(z) + (torch.tensor([answer(row) for row in c.tokens.detach()]) + flat).reshape(-1, 1, 1, 1)

    def student(select: Any) -> Any:
        twin = student_of(select)

        def predict(z: torch.Tensor, t: torch.Tensor, c: Any) -> torch.Tensor:
            flat = sum(0 * w.sum() for w in twin.weights(select).values()) + 0 * c.tokens.flatten(1).sum(1)
            return torch.zeros_like(z) + (STUDENT + flat).reshape(-1, 1, 1, 1)

        twin.predict = predict
        return twin

    model.predict, model.student = predict, student
    return model


def weight(space: str, model: Any, row: dict[str, Any]) -> float:
    """What turns the squared error of the output into that of the space, at the level that the run logged."""
    ab = float(model.schedule.alphas_cumprod[model.schedule.timesteps(4)[row["k"][0]]])
    noise = model.schedule.prediction_type == "epsilon"
    return {"output": 1.0, "eps": 1.0 if noise else ab, "x0": (1 - ab) / ab if noise else 1 - ab}[space]


SHORT = {"steps": 2, "sampling_steps": 4, "sampler": "frozen"}


@pytest.mark.parametrize("kind", ["tiny", "tiny-v"])
@pytest.mark.parametrize("space", ["output", "eps", "x0"])
@pytest.mark.parametrize(("convention", "eta", "goal"), [
    ("legacy", 1.5, NEUTRAL - 1.5 * (TARGET - NEUTRAL)),
    ("new", 1.5, TARGET - 1.5 * (TARGET - NEUTRAL)),
])  # fmt: skip
def test_esd(kind: str, space: str, convention: str, eta: float, goal: float) -> None:
    model, run = planted(kind), Run()
    ESD(**SHORT, loss_space=space, convention=convention, eta=eta).erase(model, EraseRequest(("cat",)), run)
    for row in run.log:
        assert row["erase"] == pytest.approx(weight(space, model, row) * (STUDENT - goal) ** 2, **EXACT)


@pytest.mark.parametrize("kind", ["tiny", "tiny-v"])
@pytest.mark.parametrize("space", ["output", "eps", "x0"])
@pytest.mark.parametrize(("lam", "eta"), [(0.0, 0.0), (0.3, 0.5), (2.0, 1.0)])
@pytest.mark.parametrize("cls", [AP, AGE], ids=lambda c: c.name)
def test_ap_and_age(cls: Any, kind: str, space: str, lam: float, eta: float) -> None:
    """lam weighs the preservation term; the goal of AP lies beyond the anchor, that of AGE beyond the candidate."""
    model, run = planted(kind), Run()
    cls(**SHORT, search=Gumbel(nearest=4, ascents=0), loss_space=space, lam=lam, eta=eta).erase(
        model, EraseRequest(("cat",)), run
    )
    centre = NEUTRAL if cls is AP else OTHER
    goal = centre - eta * (TARGET - centre)
    for row in run.log:
        w = weight(space, model, row)
        assert row["erase"] == pytest.approx(w * (STUDENT - goal) ** 2, **EXACT)
        assert row["preserve"] == pytest.approx(lam * w * (STUDENT - OTHER) ** 2, **EXACT)


@pytest.mark.parametrize(("concept", "preserve"), [("", ("dog",)), ("dog", ())])
def test_fixed_preserves_what_the_request_names_or_its_own_concept(concept: str, preserve: tuple[str, ...]) -> None:
    model, run = planted("tiny"), Run()
    Fixed(**SHORT, concept=concept, lam=0.3).erase(model, EraseRequest(("cat",), "", preserve), run)
    for row in run.log:
        assert row["preserve"] == pytest.approx(0.3 * (STUDENT - OTHER) ** 2, **EXACT)


@pytest.mark.parametrize("null", [False, True])
def test_advunlearn(null: bool) -> None:
    """Retained are one name, and the empty prompt where it is kept: their squared errors are averaged and weighed by gamma."""
    model, run = planted("tiny"), Run()
    options = {"attack_steps": 0, "batch": 1, "retain": 1, "keep_null": null, "eta": 1.5, "gamma": 0.3}
    AdvUnlearn.preset("tiny", **options).erase(model, EraseRequest(("cat",)), run)
    goal = NEUTRAL - 1.5 * (TARGET - NEUTRAL)
    kept = [OTHER, NEUTRAL] if null else [OTHER]
    for row in run.log:
        assert row["erase"] == pytest.approx((STUDENT - goal) ** 2, **EXACT)
        assert row["retain"] == pytest.approx(0.3 * sum((STUDENT - k) ** 2 for k in kept) / len(kept), **EXACT)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_attack_s_weight_is_a_share_of_the_erasing_term(share: float) -> None:
    model, run = planted("tiny"), Run()
    method = RAPAttack(**{**SHORT, "sampler": "pool"}, attacks=1, attack_weight=share, attack_near=4)
    method.erase(model, EraseRequest(("cat",)), run)
    whole = (STUDENT - NEUTRAL) ** 2
    for row in run.log:
        assert row["attacked"] == pytest.approx(share * whole, **EXACT)
        assert row["erase"] == pytest.approx((1 - share) * whole, **EXACT)


# -- the search ------------------------------------------------------------------------------------------------------


def brute(model: Any, metric: str) -> list[tuple[float, str]]:
    """Distances of all names to the target, ascending."""
    flat = {n: model.encode([n]).tokens[0].flatten().double() for n in model.concept_names}
    e = flat["cat"]
    cosine = lambda v: float(1 - e @ v / (e.norm() * v.norm()))  # noqa: E731
    return sorted((cosine(v) if metric == "cosine" else float((e - v).norm()), n) for n, v in flat.items() if n != "cat")


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_candidates_are_those_of_the_metric(metric: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encodings of different lengths, so that the two metrics order them differently."""
    encode = tiny_model.encode

    def longer(prompts: Any) -> Any:
        c = encode(prompts)
        sizes = torch.tensor([1 + 0.4 * (sum(map(ord, p)) % 7) for p in prompts]).reshape(-1, 1, 1)
        return replace(c, tokens=c.tokens * sizes)

    monkeypatch.setattr(tiny_model, "encode", longer)
    nearest = {m: [n for _, n in brute(tiny_model, m)][:4] for m in ("cosine", "l2")}
    assert set(nearest["cosine"]) != set(nearest["l2"])
    found = Gumbel(metric=metric, nearest=4).candidates(tiny_model, EraseRequest(("cat",)))[0]
    assert list(found) == nearest[metric]


def test_candidates_keep_apart(tiny_model: Any) -> None:
    order = brute(tiny_model, "cosine")
    apart = (order[2][0] + order[3][0]) / 2
    wanted = [n for d, n in order if d >= apart][:4]
    assert list(Gumbel(apart=apart, nearest=4).candidates(tiny_model, EraseRequest(("cat",)))[0]) == wanted
    options: dict[str, Any] = {"exclude_targets": True, "nearest": 4, "metric": "cosine"}
    assert list(candidates(tiny_model, "auto", ("cat",), apart=apart, **options)[0]) == wanted


@pytest.mark.parametrize("radius", [0.0, 0.05])
def test_the_free_embedding_stays_in_its_ball(radius: float, tiny_model: Any) -> None:
    """Two steps of length 0.1 |c| each: without a radius the embedding leaves the ball, with one it ends on its surface."""
    run = Run()
    method = AP(steps=2, sampling_steps=4, lr=1e-3, search=PGD(ascents=2, rate=0.1, radius=radius))
    method.erase(tiny_model, EraseRequest(("cat",)), run)
    moved = [row["moved"] for row in run.log]
    assert moved[0] == 0
    if radius:
        assert moved[1] == pytest.approx(radius, rel=1e-3)
    else:
        assert moved[1] > 0.09


# -- training and patches --------------------------------------------------------------------------------------------


def test_a_second_minimize_is_an_error_and_no_second_update(tiny_model: Any) -> None:
    select = selection("xattn-kv")
    student = tiny_model.student(select)
    w = next(iter(student.weights(select).values()))
    after = []

    def run() -> None:
        for step in training(student, select, steps=1, lr=1.0, seed=0, run=Run()):
            for _ in range(2):
                step.minimize(loss=w.sum())
                after.append(w.detach().clone())

    with pytest.raises(MethodError, match="twice"):
        run()
    assert len(after) == 1
    assert torch.equal(w.detach(), after[0])


def test_a_digest_knows_names_and_shapes(tiny_model: Any) -> None:
    patch = UCE().erase(tiny_model, EraseRequest(("cat",)))
    (first, a), (second, b) = [(n, d) for n, d in patch.deltas.items() if d.shape == next(iter(patch.deltas.values())).shape][:2]
    renamed = {**patch.deltas, first: b, second: a}
    elsewhere = {n + ".x" if n == first else n: d for n, d in patch.deltas.items()}
    turned = {n: d.reshape(-1, 2) if n == first else d for n, d in patch.deltas.items()}
    digests = [replace(patch, deltas=deltas).digest() for deltas in (patch.deltas, renamed, elsewhere, turned)]
    assert len(set(digests)) == 4
    assert replace(patch, deltas=dict(reversed(patch.deltas.items()))).digest() == digests[0], "the order is no part of a change"


# -- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        # Method 10 of Newcombe (1998): phi = (20 * 16 - 12 * 2 - 25) / sqrt(32 * 18 * 22 * 28) = 0.45496, on the Wilson intervals
        # of 32 / 50 and 22 / 50. Without the correction the interval is 0.0618 to 0.3242.
        ((20, 12, 2, 16), (0.2, 0.05616, 0.32921)),
        # The numerator 4 * 4 - 3 * 3 = 7 is as large as n / 2 = 7, so phi is 0 and the
        # interval sqrt(2) times that of 7 / 14.
        ((4, 3, 3, 4), (0.0, -0.32811, 0.32811)),
    ],
)
def test_newcombe_with_the_continuity_correction(counts: tuple[int, int, int, int], wanted: tuple[float, ...]) -> None:
    assert newcombe_paired(*counts) == pytest.approx(wanted, abs=1e-5)


def test_a_percentile_interval_has_95_percent() -> None:
    assert percentile_interval(map(float, range(1000))) == (25.0, 975.0)
    assert percentile_interval([math.nan, *map(float, range(1000, 0, -1))]) == (26.0, 976.0)


def test_the_bootstrap_draws_within_clusters_too() -> None:
    """Two clusters alike: what varies is within them. 100 draws of 0 and 1 have a mean within 0.5 +- 1.96 * 0.05."""
    found = clustered_bootstrap({name: [0.0, 1.0] * 25 for name in "ab"}, replicates=4000)
    assert found == (pytest.approx(0.402, abs=0.02), pytest.approx(0.598, abs=0.02))


def test_a_sign_flip_p_value_is_never_zero() -> None:
    """The observed signs are one of the patterns: with 20 equal values no drawn pattern in 4,095 reaches them."""
    assert sign_flip([1.0] * 20) == 1 / 4096
    assert sign_flip([1.0] * 5) == 1 / 32


@pytest.mark.parametrize(("synonym", "implicit", "worse"), [(0.9, 0.4, 0.4), (0.3, 0.8, 0.3), (None, 0.6, 0.6), (0.7, None, 0.7)])
def test_generality_is_the_worse_of_the_two(synonym: float | None, implicit: float | None, worse: float) -> None:
    rates = {"synonym": synonym, "implicit": implicit}
    axes = {axis: {"erased_valid": {"value": v}} for axis, v in rates.items() if v is not None}
    assert scores(axes)["generality"] == worse


# -- caches ----------------------------------------------------------------------------------------------------------


class StubJudge:
    def __init__(self, **facts: Any) -> None:
        self.facts = facts


@pytest.mark.parametrize("key", ["evaluation", "attack"])
def test_rows_of_another_judge_are_not_taken_for_this_one_s(key: str, tiny_model: Any) -> None:
    profile = next(iter(PROFILES.values()))

    def of(judge: Any) -> str:
        return evaluation_key(tiny_model, [], [], profile, judge) if key == "evaluation" else attack_key([], profile, judge, 10)

    one = of(StubJudge(detector="a", threshold=0.5, validity=0.1))
    assert of(StubJudge(detector="b", threshold=0.5, validity=0.1)) != one
    assert of(StubJudge(detector="a", threshold=0.6, validity=0.1)) != one
    assert of(StubJudge(detector="a", threshold=0.5, validity=0.9)) == one, "what calibration learns makes no other judge"


# -- attacks and guards ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 5.0])
def test_unlearndiff_clamps_the_gradient_and_decays(decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three iterations by hand. The network's output is enlarged, so that gradients are far above 1 and the clamp decides."""
    from efface.attacks import unlearndiff as module
    from efface.attacks.base import Case, rng_of
    from efface.models.tiny import tiny
    from efface.preservation.adversary import word_rows

    model, lr, big = tiny(), 0.02, 3000.0
    eps = model.deployed
    monkeypatch.setattr(model, "deployed", lambda *args: big * eps(*args))
    seen: list[torch.Tensor] = []
    onto = module.onto_simplex
    monkeypatch.setattr(module, "onto_simplex", lambda u: seen.append(onto(u)) or seen[-1])
    words, table = word_rows(model)
    case = Case("direct", "cat", "a cat", 3, 2.0)
    x_0 = model.noise(1, torch.Generator().manual_seed(1))
    attack = module.UnlearnDiff(tokens=2, timesteps=1, pictures=1, lr=lr, decay=decay)
    attack._search(model, words, table, (case,), x_0, 3)
    rng, n_words = rng_of(attack.seed, case), len(words)
    u, m, v = torch.full((2, n_words), 1 / n_words, dtype=torch.float64), 0.0, 0.0
    soft, t, ab = model.embed(["a cat"]), torch.tensor([500]), model.schedule.alphas_cumprod[500]
    clamped = 0
    for step in range(1, 4):
        drawn = torch.multinomial(u.float(), 1, generator=rng)[:, 0]
        z = torch.zeros(2, n_words).scatter_(1, drawn[:, None], 1.0).requires_grad_(True)
        n = model.noise(1, rng)
        c = model.encode_soft(soft.splice(1, 1, (z @ table)[None]))
        off = ((n - big * eps(ab.sqrt() * x_0 + (1 - ab).sqrt() * n, t, c, 2.0)) ** 2).mean()
        (g,) = torch.autograd.grad(off, z)
        clamped += int((g.abs() > 1).sum())
        g = g.double().clamp(-1, 1) + decay * u
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = u - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        u = torch.stack([nearest_on_simplex(row) for row in u])
        torch.testing.assert_close(seen[step - 1][0].double(), u, rtol=0, atol=1e-5)
    assert clamped > 2 * n_words, "the clamp has nothing to do"


def nearest_on_simplex(row: torch.Tensor) -> torch.Tensor:
    """max(row - s, 0) with the s that makes the sum 1, by bisection."""
    low, high = float(row.min()) - 1, float(row.max())
    for _ in range(100):
        s = (low + high) / 2
        low, high = (s, high) if float((row - s).clamp_min(0).sum()) > 1 else (low, s)
    return (row - s).clamp_min(0)


def test_a_trigger_is_compared_with_the_others_alone() -> None:
    """1.015 is more than 1.01 times the mean of the others, 1, and less than 1.01 times the mean of all, 1.005."""
    assert triggers(torch.tensor([1.0, 1.0, 1.015]), 0.01).tolist() == [False, False, True]
    assert triggers(torch.tensor([1.0, 1.0, 1.005]), 0.01).tolist() == [False, False, False]


@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.3])
def test_safree_moves_the_triggers_and_nothing_else(alpha: float, tiny_model: Any) -> None:
    """d_i >= (1 + alpha) mean of the others; e_i <- (I - P_C) P_I e_i for these, all other rows stay bit for bit."""
    prompt, length = "a car of cat dog bus", 6
    plain = tiny_model.encode([prompt]).tokens[0].clone()
    soft = tiny_model.embed([prompt])
    ends = []
    for i in range(1, length + 1):
        rows = soft.embeddings[0].clone()
        rows[i] = soft.pad
        c = tiny_model.encode_soft(replace(soft, embeddings=rows[None]))
        ends.append(c.tokens[0, length + 1].detach().double())
    target = tiny_model.encode(["cat"]).tokens[0, 2].double()
    away = torch.eye(len(target), dtype=torch.float64) - torch.outer(target, target) / (target @ target)
    d = [float((away @ p).norm()) for p in ends]
    hit = [i for i, x in enumerate(d) if x >= (1 + alpha) * (sum(d) - x) / (length - 1)]
    basis = torch.linalg.qr(torch.stack(ends).T)[0]
    with SAFREE(alpha=alpha).active(tiny_model, ("cat",)):
        early = tiny_model.encode([prompt]).extras["early"][0]
    for i in range(length):
        row, moved = plain[i + 1].double(), early[i + 1].double()
        if i in hit:
            torch.testing.assert_close(moved, away @ (basis @ (basis.T @ row)), rtol=0, atol=1e-4)
            assert not torch.equal(early[i + 1], plain[i + 1])
        else:
            assert torch.equal(early[i + 1], plain[i + 1]), i
    assert torch.equal(early[0], plain[0])
    assert torch.equal(early[length + 1 :], plain[length + 1 :])
    assert len(hit) == {0.0: len(hit), 0.02: len(hit), 0.3: 0}[alpha]
    assert alpha or 0 < len(hit) < length


@pytest.mark.parametrize("score", [0.7, 0.0, -0.2, None])
def test_the_score_of_an_image_that_is_not_valid_never_flatters(score: float | None) -> None:
    """It says nothing of an erasure, and of what should be kept it is at most 0."""
    valid, invalid = (
        Row("e", "c", "near", "dog", "dog", 0, v, None if v else "noise", "dog", 0.9, score, score) for v in (True, False)
    )
    assert _scored(valid, score, True) == _scored(valid, score, False) == score
    assert _scored(invalid, score, True) is None
    assert _scored(invalid, score, False) == (-0.2 if score == -0.2 else 0.0)
