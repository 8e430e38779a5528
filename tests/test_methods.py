"""Contract, cost and behaviour of every method on the tiny model of real diffusers classes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from efface.concepts.request import EraseRequest
from efface.errors import BadOption, MethodError, NonFiniteLoss, UnknownName
from efface.methods import AP, ESD, METHODS, UCE, Method, Naive
from efface.models.load import load_model
from efface.models.select import selection
from efface.patches import Patch
from efface.testing import check_method, same
from efface.training import Run, training

VARIANTS: list[Method] = [
    Naive(**Naive.presets["tiny"]),
    Naive(**Naive.presets["tiny"], batch=2, train="full"),
    ESD(**ESD.presets["tiny"]),
    ESD(**ESD.presets["tiny"], train="noxattn"),
    ESD(**ESD.presets["tiny"], alignment="official"),
    ESD(**ESD.presets["tiny"], convention="new", eta=2.0, sampler="frozen"),
    AP(**AP.presets["tiny"]),
    AP(**AP.presets["tiny"], hard=False, ascents=2),
    AP(**AP.presets["tiny"], **AP.presets["official"]),
    AP(**AP.presets["tiny"], sampler="pool", batch=2, ascents=2),
    AP(**AP.presets["tiny"], ascents=0, lam=0.0),
    UCE(),
    UCE(**UCE.presets["2023"], expand=True),
]


@pytest.mark.parametrize("method", VARIANTS, ids=[f"{m.name}{i}" for i, m in enumerate(VARIANTS)])
@pytest.mark.parametrize("model", ["tiny", "tiny-v"])
def test_contract(method: Method, model: str) -> None:
    patch = check_method(method, EraseRequest(("cat", "rose"), "", ("dog",)), load_model(model))
    select = selection(getattr(method, "train", "xattn-kv"))
    assert all(select(name) for name in patch.deltas), "the patch touches more than the method declares"
    assert patch.card.config == dataclasses.asdict(method)


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS.keys())
def test_every_preset_can_be_built_and_every_option_explains_itself(cls: type[Method]) -> None:
    assert {"paper", "mini", "tiny"} <= set(cls.presets)
    for preset in cls.presets.values():
        cls(**preset)
    for field in dataclasses.fields(cls):
        assert field.metadata["help"], field.name
        assert field.metadata["source"], field.name
    assert all(word in (cls.__doc__ or "") for word in ("Reference:", "Cost:")), cls


@pytest.mark.parametrize("cls", [Naive, ESD, AP], ids=lambda c: c.name)
def test_zero_steps_change_nothing(cls: type[Method], tiny_model) -> None:  # type: ignore[no-untyped-def]
    method = cls(**{**cls.presets["tiny"], "steps": 0})
    assert not method.erase(tiny_model, EraseRequest(("cat",))).deltas


@pytest.mark.parametrize("method", [m for m in VARIANTS if not isinstance(m, UCE)], ids=lambda m: m.name)
def test_counted_cost_equals_documented_cost(method: Method, tiny_model) -> None:  # type: ignore[no-untyped-def]
    """Step by step: each step's count follows from its logged grid levels by the formula of the docstring."""
    request, s = EraseRequest(("cat",), "", ("dog",)), method.sampling_steps  # type: ignore[attr-defined]
    official = getattr(method, "alignment", "exact") == "official"
    walked = lambda k: min(s - 1, s - k) if official else k  # noqa: E731
    run, counts = Run(), []
    run.on_step = lambda step, total: counts.append(tiny_model.evals.forward)
    patch = method.erase(tiny_model, request, run)
    counts.append(patch.card.cost["forward"])
    pooled = getattr(method, "sampler", "") == "pool"
    # AP's ascent follows the weight update of the same step, so its cost shows in the next count.
    fill = 2 * (s - 1) * method.pool * (1 + len(method.candidates(tiny_model, request)[0])) if pooled else 0  # type: ignore[attr-defined]
    total = fill
    for row in run.log:
        if pooled:
            total += method.batch * (5 + 2 * method.ascents)  # type: ignore[attr-defined]
        elif isinstance(method, AP):
            total += method.batch * (4 * walked(row["k"]) + 5 + sum(2 * walked(k) + 2 for k in row.get("ascent_k", [])))
        else:
            total += method.batch * (2 * walked(row["k"]) + (3 if isinstance(method, ESD) else 2))  # type: ignore[attr-defined]
    assert patch.card.cost["forward"] == total
    assert patch.card.cost["backward"] == method.steps  # type: ignore[attr-defined]


def test_expected_cost_is_the_mean_of_the_formula(tiny_model) -> None:  # type: ignore[no-untyped-def]
    request = EraseRequest(("cat",))
    assert Naive(steps=1).expected_evals(tiny_model, request) == pytest.approx(51)
    assert ESD(steps=1).expected_evals(tiny_model, request) == pytest.approx(52)
    assert ESD(steps=1, alignment="official").expected_evals(tiny_model, request) == pytest.approx(53.96)  # specification 2.1
    assert AP(steps=1).expected_evals(tiny_model, request) == pytest.approx(154)
    assert AP(steps=1).expected_evals(tiny_model, request) <= 159  # exact AP against 213.84 of the official code
    with_pool = AP(steps=1, sampler="pool", pool=1, nearest=3)
    assert (
        with_pool.expected_evals(tiny_model, request)
        - AP(steps=0, sampler="pool", pool=1, nearest=3).expected_evals(tiny_model, request)
        <= 8
    )


def test_ap_excludes_targets_whatever_their_spelling_and_the_official_preset_does_not(tiny_model) -> None:  # type: ignore[no-untyped-def]
    request = EraseRequest(("CAT",))
    assert "cat" not in AP(nearest=99).candidates(tiny_model, request)[0]
    official = AP(**AP.presets["official"], nearest=99)
    assert official.candidates(tiny_model, request)[0][0] == "cat", "the target itself is at distance 0 and comes first"


def test_ap_descent_keeps_pi_and_ascent_keeps_weights(tiny_model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from efface import search
    from efface.methods import ap as module

    seen: list[tuple[str, int]] = []
    student_of = tiny_model.student
    students = []
    monkeypatch.setattr(tiny_model, "student", lambda select: students.append(student_of(select)) or students[-1])
    ascend = search.Logits.ascend

    def watched(self: search.Logits, objective: torch.Tensor, used: set[int]) -> None:
        weights = {n: p.detach().clone() for n, p in students[-1].weights(lambda _: True).items()}
        before = [v.detach().clone() for v in self.values]
        ascend(self, objective, used)
        changed = [i for i, (a, b) in enumerate(zip(before, self.values, strict=True)) if not torch.equal(a, b)]
        assert same(weights, {n: p.detach() for n, p in students[-1].weights(lambda _: True).items()})
        assert set(changed) <= used, "a target that was not drawn moved"
        seen.append(("ascent", len(changed)))

    monkeypatch.setattr(module.Logits, "ascend", watched)
    AP(steps=4, sampling_steps=4, nearest=4).erase(tiny_model, EraseRequest(("cat", "rose")))
    assert len(seen) == 4
    assert any(n == 1 for _, n in seen), "the search never moved"


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
    with pytest.raises(BadOption, match="hard=true"):
        AP(sampler="pool", hard=False)
    with pytest.raises(BadOption, match="alignment"):
        AP(sampler="pool", alignment="official")


def test_nan_stops_the_run_and_names_the_term(tiny_model) -> None:  # type: ignore[no-untyped-def]
    next(iter(tiny_model.weights(lambda n: n.endswith("attn2.to_v.weight")).values())).data.fill_(torch.nan)
    with pytest.raises(NonFiniteLoss, match="step 0: loss term erase is nan"):
        Naive(steps=2, sampling_steps=4).erase(tiny_model, EraseRequest(("cat",)))


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
