"""Contract, cost and behaviour of every method on the tiny model of real diffusers classes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from efface.concepts.request import EraseRequest
from efface.errors import BadOption, MethodError, NonFiniteLoss, UnknownName
from efface.methods import AGE, AP, ESD, METHODS, UCE, Method
from efface.models.load import load_model
from efface.models.select import selection
from efface.patches import Patch
from efface.preservation.exhaustive import ExhaustiveSearch
from efface.registry import build_method
from efface.testing import check_method, same
from efface.training.loop import Run, training

TINY_AP, TINY_ESD, TINY_AGE = AP.presets["tiny"], ESD.presets["tiny"], AGE.presets["tiny"]
VARIANTS: list[Method] = [
    *(AP(**{**TINY_AP, **AP.presets[row], "lr": 1e-3}) for row in ("naive", "l2", "neutral", "fixed", "random")),
    AP(**{**TINY_AP, **AP.presets["naive"]}, batch=2, train="full"),
    AP(**TINY_AP, search="fixed:bus", eta=1.0),
    AP(**{**TINY_AP, **AP.presets["exhaustive"]}, refresh=2),
    AP(**TINY_AP, search="exhaustive", sampler="pool", refresh=2),
    AP(**{**TINY_AP, **AP.presets["pgd"]}),
    AP(**{**TINY_AP, **AP.presets["pgd"]}, update="joint", sampler="frozen", pgd_radius=0.1),
    AP(**TINY_AP),
    AP(**TINY_AP, hard=False, ascents=2),
    AP(**TINY_AP, **AP.presets["official"]),
    AP(**TINY_AP, sampler="pool", batch=2, ascents=2),
    AP(**TINY_AP, sampler="harvest", lifetime=2, batch=2),
    AP(**TINY_AP, sampler="noised", solver="dpm"),
    AP(**TINY_AP, sampler="pool", update="joint"),
    AP(**TINY_AP, update="joint", solver="dpm", frames=2),
    AP(**TINY_AP, ascents=0, lam=0.0, centres=2),
    ESD(**TINY_ESD),
    ESD(**TINY_ESD, train="noxattn"),
    ESD(**TINY_ESD, alignment="official"),
    ESD(**TINY_ESD, convention="new", eta=2.0, sampler="frozen"),
    ESD(**TINY_ESD, sampler="pool", loss_space="x0"),
    AGE(**TINY_AGE),
    AGE(**{**TINY_AGE, **AGE.presets["official"]}),
    AGE(**TINY_AGE, hard=False, topk=2, batch=2),
    AGE(**TINY_AGE, sampler="pool", eta=1.0, through_target=False),
    UCE(),
    UCE(**UCE.presets["2023"], expand=True),
]
OUTPUT_BASED = [m for m in VARIANTS if isinstance(m, AP | ESD | AGE)]
REQUEST = EraseRequest(("cat",), "", ("dog",))


@pytest.mark.parametrize("method", VARIANTS, ids=[f"{m.label}{i}" for i, m in enumerate(VARIANTS)])
@pytest.mark.parametrize("model", ["tiny", "tiny-v"])
def test_contract(method: Method, model: str) -> None:
    patch = check_method(method, EraseRequest(("cat", "rose"), "", ("dog",)), load_model(model))
    select = selection(getattr(method, "train", "xattn-kv"))
    assert all(select(name) for name in patch.deltas), "the patch touches more than the method declares"
    assert patch.card.config == dataclasses.asdict(method)
    assert patch.card.method == method.label


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS.keys())
def test_every_preset_can_be_built_and_every_option_explains_itself(cls: type[Method]) -> None:
    assert {"paper", "mini", "tiny"} <= set(cls.presets)
    for preset in cls.presets.values():
        cls(**preset)
    for field in dataclasses.fields(cls):
        assert field.metadata["help"], field.name
        assert field.metadata["source"], field.name
    assert all(word in (cls.__doc__ or "") for word in ("Reference:", "Cost:")), cls


@pytest.mark.parametrize("cls", [ESD, AP, AGE], ids=lambda c: c.name)
def test_zero_steps_change_nothing(cls: type[Method], tiny_model) -> None:  # type: ignore[no-untyped-def]
    method = cls(**{**cls.presets["tiny"], "steps": 0})
    assert not method.erase(tiny_model, EraseRequest(("cat",))).deltas


def documented_cost(method: AP | ESD | AGE, log: list[dict[str, Any]], candidates: int) -> int:
    """The docstrings' formulas, step by step, from the grid levels that the run logged. One target, ``candidates`` names."""
    s, official = method.sampling_steps, method.alignment == "official"

    def walk(k: int, groups: int) -> int:
        steps = min(s - 1, s - k) if official else k
        return method.batch * (2 * groups * steps - (groups - 1) * (steps > 0))

    kept = 0 if isinstance(method, AP) and method.search in ("none", "pgd") else candidates
    trajectories = method.pool + method.per_candidate * kept
    total = {"pool": 2 * (s - 1), "noised": 2 * s}.get(method.sampler, 0) * trajectories
    searching = isinstance(method, AP) and method.search in ("gumbel", "pgd") and method.update == "alternate"
    own = 1 if isinstance(method, ESD) or (isinstance(method, AP) and method.search in ("none", "pgd")) else 2
    for row in log:
        levels = list(row.get("k", []))
        total += sum(walk(k, own) for k in levels[:1])
        total += sum(walk(k, 2 if isinstance(method, AGE) and method.through_target else 1) for k in levels[1:])
        if isinstance(method, ESD):
            total += 3 * method.batch
            continue
        total += method.batch * (2 + (method.eta != 0))
        if isinstance(method, AGE):
            total += method.batch * (2 + method.ascents * (4 if method.through_target else 2))
            continue
        total += method.batch * 2 * (method.search != "none")
        total += method.batch * 2 * method.ascents * searching
        if method.search == "exhaustive" and row["step"] % method.refresh == 0:
            total += 2 * candidates + sum(2 * k for k in row.get("common_k", []))
    return total + 4 * s * min(getattr(method, "frames", 0), method.steps)


@pytest.mark.parametrize("method", OUTPUT_BASED, ids=[f"{m.label}{i}" for i, m in enumerate(OUTPUT_BASED)])
def test_counted_cost_equals_documented_cost(method: AP | ESD | AGE, tiny_model) -> None:  # type: ignore[no-untyped-def]
    run = Run()
    patch = method.erase(tiny_model, REQUEST, run)
    n = 0 if isinstance(method, ESD) else len(method.candidates(tiny_model, REQUEST)[0])
    cost = documented_cost(method, run.log, n)
    if method.sampler == "harvest":
        # Every concept that is drawn costs one trajectory, and another one when it is drawn again too old.
        one = 2 * (method.sampling_steps - 1) * math.gcd(method.pool, method.per_candidate)
        most = 2 * (method.sampling_steps - 1) * (method.pool + n * method.per_candidate)
        extra = patch.card.cost["forward"] - cost
        assert extra % one == 0
        assert one <= extra <= most * method.steps
    else:
        assert patch.card.cost["forward"] == cost
    assert patch.card.cost["backward"] == method.steps


@pytest.mark.parametrize("method", OUTPUT_BASED, ids=[f"{m.label}{i}" for i, m in enumerate(OUTPUT_BASED)])
def test_expected_cost_is_the_mean_of_the_documented_cost(method: AP | ESD | AGE, tiny_model) -> None:  # type: ignore[no-untyped-def]
    """Averaged over every level exactly, so there is no chance in it: draws are replaced by all their values."""
    if method.sampler == "harvest":
        pytest.skip("its cost depends on which concepts are drawn")
    s = method.sampling_steps
    n = 0 if isinstance(method, ESD) else len(method.candidates(tiny_model, REQUEST)[0])
    draws = 1
    if isinstance(method, AGE):
        draws += method.ascents
    elif isinstance(method, AP) and method.search in ("gumbel", "pgd") and method.update == "alternate":
        draws += min(method.ascents, 1) if method.search == "pgd" else method.ascents
    pooled = method.sampler in ("pool", "noised")
    log = [
        {"step": i, "k": [] if pooled else [k] * draws, "common_k": [] if pooled else [k]}
        for i in range(method.steps)
        for k in range(s)
    ]
    once = documented_cost(method, [], n)
    mean = once + (documented_cost(method, log, n) - once) / s
    assert method.expected_evals(tiny_model, REQUEST) == pytest.approx(mean)


def test_costs_of_the_papers_schedules(tiny_model) -> None:  # type: ignore[no-untyped-def]
    request = EraseRequest(("cat",))
    assert build_method("naive", preset="paper", settings={"steps": 1}).expected_evals(tiny_model, request) == pytest.approx(51)
    assert ESD(steps=1).expected_evals(tiny_model, request) == pytest.approx(52)
    assert ESD(steps=1, alignment="official").expected_evals(tiny_model, request) == pytest.approx(53.96)  # specification 2.1
    assert AP(steps=1, eta=1.0).expected_evals(tiny_model, request) == pytest.approx(153.02)
    official = AP(**AP.presets["official"], steps=1)
    assert official.expected_evals(tiny_model, request) == pytest.approx(158.88)  # specification 8.2
    with_pool = AP(steps=1, sampler="pool", pool=1, nearest=3, eta=1.0)
    filled = dataclasses.replace(with_pool, steps=0).expected_evals(tiny_model, request)
    assert with_pool.expected_evals(tiny_model, request) - filled == 7
    joint = dataclasses.replace(with_pool, update="joint")
    assert joint.expected_evals(tiny_model, request) - filled == 5


def test_rows_differ_from_ap_in_what_they_are_called() -> None:
    ap = dataclasses.asdict(build_method("ap", preset="mini"))
    for row, changed in {"naive": {"search"}, "l2": {"search", "shrink"}, "neutral": {"search"}, "fixed": {"search"}}.items():
        other = dataclasses.asdict(build_method(row, preset="mini"))
        assert {k for k in ap if ap[k] != other[k]} == changed
        assert build_method(row, preset="mini").label == row


def test_a_fixed_row_needs_something_to_preserve_and_nothing_that_is_erased(tiny_model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadOption, match="--preserve"):
        AP(search="fixed").candidates(tiny_model, EraseRequest(("cat",)))
    with pytest.raises(BadOption, match="'Cat', which is to be erased"):
        AP(search="fixed:cat").candidates(tiny_model, EraseRequest(("Cat",)))
    with pytest.raises(UnknownName, match="Did you mean 'gumbel'"):
        AP(search="gumble")


def test_ap_excludes_targets_whatever_their_spelling_and_the_official_preset_does_not(tiny_model) -> None:  # type: ignore[no-untyped-def]
    request = EraseRequest(("CAT",))
    assert "cat" not in AP(nearest=99).candidates(tiny_model, request)[0]
    official = AP(**AP.presets["official"], nearest=99)
    assert official.candidates(tiny_model, request)[0][0] == "cat", "the target itself is at distance 0 and comes first"


@pytest.mark.parametrize("search", ["gumbel", "pgd"])
def test_descent_keeps_the_search_and_ascent_keeps_the_weights(search: str, tiny_model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Specification 11.5: the theta step leaves pi and the unselected parameters alone, the pi step all weights, and only the
    drawn targets' logits move."""
    from efface.preservation import search as module

    cls = {"gumbel": module.GumbelSearch, "pgd": module.PgdSearch}[search]
    points = lambda s: s.pi.values if search == "gumbel" else s.points  # noqa: E731
    student_of, students, seen = tiny_model.student, [], []
    monkeypatch.setattr(tiny_model, "student", lambda select: students.append(student_of(select)) or students[-1])
    follow = cls.follow
    held: list[torch.Tensor] = []

    def watched(self, e):  # type: ignore[no-untyped-def]
        weights = {n: p.detach().clone() for n, p in students[-1].weights(lambda _: True).items()}
        before = [v.detach().clone() for v in points(self)]
        if held and search == "gumbel":
            assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True)), "the descent moved pi"
        follow(self, e)
        changed = [i for i, (a, b) in enumerate(zip(before, points(self), strict=True)) if not torch.equal(a, b)]
        assert same(weights, {n: p.detach() for n, p in students[-1].weights(lambda _: True).items()})
        assert set(changed) <= set(e), "a target that was not drawn moved"
        held[:] = [v.detach().clone() for v in points(self)]
        seen.append(len(changed))

    monkeypatch.setattr(cls, "follow", watched)
    AP(steps=4, sampling_steps=4, nearest=4, lr=1e-3, search=search).erase(tiny_model, EraseRequest(("cat", "rose")))
    assert len(seen) == 4
    assert any(seen), "the search never moved"


def test_joint_update_moves_the_search_without_an_ascent(tiny_model) -> None:  # type: ignore[no-untyped-def]
    settings = {"steps": 5, "sampling_steps": 4, "nearest": 4, "lr": 1e-3, "sampler": "pool", "update": "joint"}
    patch = AP(**settings).erase(tiny_model, REQUEST)
    entropies = {row["entropy"] for row in patch.card.log["adversarial"]}
    # At the first step nothing is damaged yet, so there is nothing to climb (specification 11.13); then pi moves every time.
    assert len(entropies) == 4, "pi stood still"
    with pytest.raises(BadOption, match="joint"):
        AP(search="random", update="joint")


def test_exhaustive_search_returns_the_brute_force_argmax(tiny_model) -> None:  # type: ignore[no-untyped-def]
    """Specification 11.10, on a planted damage: the student's prediction at one candidate is off by construction."""
    names = AP(nearest=6).candidates(tiny_model, REQUEST)
    rows = [tiny_model.encode(n) for n in names]
    search = ExhaustiveSearch(names, rows, refresh=1)
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(len(names[0]), generator=g)
    by_tokens = {row.tokens.sum().item(): s for row, s in zip([rows[0][i] for i in range(len(scores))], scores, strict=True)}

    def damage(c, z, t):  # type: ignore[no-untyped-def]
        return torch.stack([by_tokens[c[i].tokens.sum().item()] for i in range(len(c))])

    z, t = tiny_model.noise(len(scores), g), torch.zeros(len(scores), dtype=torch.int64)
    search.rank(0, damage, z, t)
    assert search.worst[0] == int(scores.argmax())
    assert search.facts(0)["margin"] == pytest.approx(float(scores.max() / scores.mean()))


def test_age_s_first_term_moves_the_search_only_through_the_target(tiny_model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Specification 11.11: with lam 0 the official search has no gradient at all, the paper's has one."""
    moved = {}
    for through in (True, False):
        gradients: list[float] = []
        from efface.training.learned import Learned

        update = Learned.update

        def watched(self, used, update=update, gradients=gradients):  # type: ignore[no-untyped-def]
            gradients.append(sum(float(v.grad.abs().sum()) for v in self.values if v.grad is not None))
            update(self, used)

        monkeypatch.setattr(Learned, "update", watched)
        AGE(**{**TINY_AGE, "lam": 0.0, "through_target": through, "tau": 1.0, "lr": 1e-3}).erase(tiny_model, REQUEST)
        monkeypatch.setattr(Learned, "update", update)
        moved[through] = max(gradients)
    assert moved[True] > 0
    assert moved[False] == 0


def test_film_frames_land_on_the_card(tiny_model) -> None:  # type: ignore[no-untyped-def]
    import base64

    patch = AP(**TINY_AP, frames=2).erase(tiny_model, REQUEST)
    shots = patch.card.log["film"]
    assert [s["step"] for s in shots] == [0, 2]
    assert all(base64.b64decode(s[who]).startswith(b"\x89PNG") for s in shots for who in ("frozen", "student"))
    with pytest.raises(BadOption, match="frames"):
        AP(search="none", frames=1)


def test_l2_goes_less_far_than_naive(tiny_model) -> None:  # type: ignore[no-untyped-def]
    settings = {"steps": 8, "sampling_steps": 4, "lr": 1e-3, "search": "none"}
    assert AP(**settings, shrink=0.1).erase(tiny_model, REQUEST).norm() < AP(**settings).erase(tiny_model, REQUEST).norm()
    assert not AP(**settings, shrink=1.0).erase(tiny_model, REQUEST).deltas, "everything is taken back"


def test_ap_search_finds_the_planted_victim(tiny_model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """One candidate is damaged by construction; the logits must come to prefer it over uniform 1/n."""
    victim = AP(nearest=6).candidates(tiny_model, EraseRequest(("cat",)))[0][3]
    predict = type(tiny_model).predict
    student_of = tiny_model.student

    def damaged_student(select):  # type: ignore[no-untyped-def]
        student = student_of(select)
        tokens = tiny_model.encode([victim]).tokens[0]

        def damaged(z, t, c):  # type: ignore[no-untyped-def]
            closeness = torch.exp(-(c.tokens - tokens).square().mean((1, 2)) * 20)[:, None, None, None]
            return predict(student, z, t, c) + closeness

        student.predict = damaged
        return student

    monkeypatch.setattr(tiny_model, "student", damaged_student)
    run = Run()
    AP(steps=60, sampling_steps=4, nearest=6, sampler="pool", pi_lr=1.0, lr=1e-7, tau=1.0).erase(
        tiny_model, EraseRequest(("cat",)), run
    )
    late = [row["concept"] for row in run.log[30:]]
    assert late.count(victim) > 15, f"chosen {late.count(victim)} of 30 times; uniform would be 5"


def test_options_that_contradict_each_other_are_refused() -> None:
    for cls in (AP, AGE):
        with pytest.raises(BadOption, match="hard=true"):
            cls(sampler="pool", hard=False)
        with pytest.raises(BadOption, match="alignment"):
            cls(sampler="noised", alignment="official")
        with pytest.raises(UnknownName, match="Did you mean 'pool'"):
            cls(sampler="pol")


def test_nan_stops_the_run_and_names_the_term(tiny_model) -> None:  # type: ignore[no-untyped-def]
    next(iter(tiny_model.weights(lambda n: n.endswith("attn2.to_v.weight")).values())).data.fill_(torch.nan)
    with pytest.raises(NonFiniteLoss, match="step 0: loss term erase is nan"):
        AP(steps=2, sampling_steps=4, search="none").erase(tiny_model, EraseRequest(("cat",)))


def test_nan_weights_behind_a_finite_loss_make_no_patch() -> None:
    base = {"w": torch.zeros(3)}
    card = UCE().card(load_model("tiny"), EraseRequest(("cat",)), {"forward": 0, "calls": 0, "backward": 0})
    with pytest.raises(NonFiniteLoss, match="not finite"):
        Patch.between(base, {"w": torch.tensor([0.0, torch.nan, 0.0])}, card)


def test_a_body_that_forgets_to_minimize_is_caught(tiny_model) -> None:  # type: ignore[no-untyped-def]
    select = selection("xattn")
    with pytest.raises(MethodError, match="never called"):
        for _ in training(tiny_model.student(select), select, steps=1, lr=1e-3, seed=0, run=Run()):
            pass


def test_unknown_selection() -> None:
    with pytest.raises(UnknownName, match="xattn"):
        selection("xatn")
