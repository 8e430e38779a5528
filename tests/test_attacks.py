"""Attacks: the contract, planted truths, what counts as a success, and the command line."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from efface import verbs
from efface.attacks import (
    MMA,
    P4D,
    Attack,
    Attempt,
    Completion,
    ConceptInversion,
    Deployed,
    Goal,
    LatentInversion,
    NoiseProbe,
    Plan,
    RandomToken,
    SeedSearch,
    UnlearnDiff,
)
from efface.attacks.textual import reworded
from efface.attacks.unlearndiff import _share
from efface.cli import main
from efface.cli.attack import attack_table
from efface.concepts.prompts import Case
from efface.equations.simplex import onto_simplex
from efface.errors import BadFile, BadOption, EvaluationError, UnknownName
from efface.evaluation.attack import Unit, render, run_attacks, run_unit
from efface.evaluation.attacked import summarise_attacks
from efface.evaluation.profiles import PROFILES, Profile
from efface.evaluation.records import AttemptRow, read_attempts
from efface.methods import UCE
from efface.models.load import load_model
from efface.models.tiny import tiny
from efface.patches import Patch
from efface.registry import ATTACKS, GUARDS, build_attack
from efface.testing import check_attack, same, state
from efface.verbs.erase import request_for

TINY_ATTACKS = [build_attack(name, preset="tiny") for name in ATTACKS if name not in ("inverse", "restore")]
CASES = tuple(Case("direct", "cat", p, s, 2.0) for p, s in (("a cat", 1), ("a photo of a cat", 2), ("the cat", 3)))
GOAL = Goal("cat", CASES, {"synonym": ("dog",)})


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_projection_onto_the_simplex_is_the_nearest_point(values: list[float]) -> None:
    u = torch.tensor(values, dtype=torch.float64)
    y = onto_simplex(u)
    assert bool((y >= 0).all())
    assert float(y.sum()) == pytest.approx(1, abs=1e-10)
    assert torch.allclose(onto_simplex(y), y, atol=1e-10)
    # Optimality: u - y is constant where y > 0 and not larger elsewhere.
    shift = (u - y)[y > 1e-12]
    assert float(shift.max() - shift.min()) < 1e-9
    assert bool((u - y <= shift.max() + 1e-9).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_of_many_rows_is_the_sort_based_one_of_each_row(dtype: torch.dtype) -> None:
    """Rows near the simplex and far from it, with ties, with one coordinate far above the others, and on the simplex already."""
    rng = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0]).reshape(5, 1, 1)
    drawn = (scales * torch.randn(5, 3, 40, generator=rng)).flatten(0, 1)
    peak = torch.nn.functional.one_hot(torch.tensor([7]), 40)
    special = [torch.full((1, 40), 1 / 40), torch.full((1, 40), -3.0), peak, 50 * peak, drawn[6:7].round(), drawn[6:7].softmax(1)]
    u = torch.cat([drawn, *special]).to(dtype)
    expected = []
    for row in u.double().numpy():
        largest = np.sort(row)[::-1]
        shifts = (np.cumsum(largest) - 1) / np.arange(1, len(row) + 1)
        kept = np.flatnonzero(largest > shifts).max()
        expected.append(np.maximum(row - shifts[kept], 0))
    y = onto_simplex(u.reshape(3, 7, 40)).reshape(21, 40)
    close = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-4}  # float32 rounds coordinates of 100 to 1e-5
    torch.testing.assert_close(y.double(), torch.from_numpy(np.stack(expected)), **close)
    assert bool((y >= 0).all())
    torch.testing.assert_close(y.sum(1), torch.ones(21, dtype=dtype), **close)
    torch.testing.assert_close(onto_simplex(y), y, **close)


@given(st.integers(0, 300), st.integers(1, 60))
def test_every_iteration_falls_to_one_block(total: int, blocks: int) -> None:
    assert sum(_share(total, blocks, b) for b in range(blocks)) == total


@pytest.mark.parametrize("attack", TINY_ATTACKS, ids=lambda a: a.name)
def test_contract(attack: Attack) -> None:
    check_attack(attack)


@pytest.mark.parametrize(
    ("library", "draw"), [("torch", lambda: torch.rand(1)), ("Python", random.random), ("numpy", lambda: np.random.rand())]
)
def test_an_attack_that_draws_from_a_global_generator_is_caught(library: str, draw: Callable[[], object]) -> None:
    class Careless(SeedSearch):
        name = "careless"

        def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
            draw()
            return super().run(deployed, goal, plan)

    kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        with pytest.raises(AssertionError, match=f"global random state of {library}"):
            check_attack(Careless())
    finally:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])


WORDS = {"synonym": ("dog",), "group": ("a house",), "implicit": ("a photo of the house",)}


def erased() -> Deployed:
    """A tiny model with its patch."""
    model = tiny()
    return Deployed(model, 2, ("cat",), verbs.erase(model, UCE(), targets=["cat"]))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_evaluations_that_are_counted_are_the_rows_that_the_network_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are counted in the forward of diffusers' network, and again where a gradient comes back to it. The images are drawn,
    too, so that every attack evaluates something; those of one that learns nothing have no gradient."""
    from diffusers import UNet2DConditionModel

    attack, deployed, goal = build_attack(name, preset="tiny"), erased(), Goal("cat", CASES, WORDS)
    plan, evals, read = attack.plan(deployed, goal, 60), deployed.original.evals, {"forward": 0, "backward": 0}
    forward = UNet2DConditionModel.forward

    def came_back(gradient: Tensor) -> None:
        read["backward"] += len(gradient)

    def counted(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        read["forward"] += len(sample)
        out = forward(self, sample, *args, **kwargs)
        if out[0].requires_grad:
            out[0].register_hook(came_back)
        return out

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    before = evals.forward, evals.differentiated
    render(deployed, goal, attack.run(deployed, goal, plan))
    assert (evals.forward - before[0], evals.differentiated - before[1]) == (read["forward"], read["backward"])
    assert read["forward"] > 0
    assert read["backward"] == plan.backward


FAST = ("seed_search", "completion", "unlearndiff", "relearn", "restore")
"""One attack of each way to attack; the contract above tests that all leave the weights alone while they search."""


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in ATTACKS])
def test_weights_are_the_same_after_a_whole_run_with_its_images_and_verdicts(name: str) -> None:
    attack, deployed, goal = build_attack(name, preset="tiny"), erased(), Goal("cat", CASES, WORDS)
    model = deployed.original
    before, weights = model.digest(), state(model)
    rows, _ = run_unit(Unit(name, attack, deployed, goal), SMALL, Oracle(True), 60, dict.fromkeys(CASES, True))
    assert {row.case_id for row in rows} == {case.id for case in CASES}
    model.weights_changed()  # the digest is not remembered
    assert model.digest() == before
    assert same(state(model), weights)
    assert all(p.grad is None and not p.requires_grad for p in model.network.parameters())


def test_contract_of_the_inverse() -> None:
    model = tiny()
    patch = verbs.erase(model, UCE(), targets=["cat"])
    deployed = Deployed(model, 2, ("cat",), patch)
    attempts = check_attack(build_attack("inverse", preset="tiny"), deployed)
    assert all(a.cond is not None for a in attempts)
    assert {a.stage for a in attempts if a.case == 0} == {f"seed {k + 1}" for k in range(sum(a.case == 0 for a in attempts))}
    with pytest.raises(BadOption, match="--patch"):
        ATTACKS["inverse"]().plan(Deployed(model, 2), GOAL, 100)


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("name", ["unlearndiff", "concept_inversion"])
def test_contract_against_patch_and_guard(name: str, guard: str) -> None:
    model = tiny()
    patch = verbs.erase(model, UCE(), targets=["cat"])
    check_attack(build_attack(name, preset="tiny"), Deployed(model, 2, ("cat",), patch, GUARDS[guard]()), budget=60)


@pytest.mark.parametrize("name", ["unlearndiff", "concept_inversion"])
def test_the_number_of_pictures_may_be_given_by_its_old_name(name: str) -> None:
    with pytest.warns(FutureWarning, match="looks is called pictures now"):
        assert build_attack(name, settings={"looks": "3"}) == ATTACKS[name](pictures=3)


def test_without_iterations_the_search_is_its_control() -> None:
    deployed = Deployed(tiny(), steps=2)
    search, control = UnlearnDiff(tokens=2, timesteps=2, pictures=2), RandomToken(tokens=2)
    found = search.run(deployed, GOAL, Plan(images=2, iterations=0))
    drawn = control.run(deployed, GOAL, Plan(images=2))
    assert sorted((a.case, a.prompt, a.seed) for a in found) == sorted((a.case, a.prompt, a.seed) for a in drawn)
    assert {a.prompt for a in search.run(deployed, GOAL, Plan(2, 8))} != {a.prompt for a in found}, "iterations move it"


SEARCHES = [P4D(mode="n", tokens=2, pairs=2, pictures=1, lr=1.0), MMA(tokens=2, steps=0, topk=4, candidates=8)]


@pytest.mark.parametrize("attack", SEARCHES, ids=lambda a: a.name)
def test_without_steps_a_search_for_a_whole_prompt_hands_over_random_words(attack: P4D | MMA) -> None:
    """The control of these two is random words, the same as :class:`RandomToken` draws, but in the place of the prompt and not
    before it. No prediction of the model and no encoding has a part in them: a network with other weights gives the same ones.
    (MMA leaves the target's words out, and the target here is no word of the vocabulary.)"""
    goal, other = Goal("zebra", CASES), Deployed(tiny(seed=1), steps=2)
    found = attack.run(Deployed(tiny(), steps=2), goal, Plan(images=1, iterations=0))
    assert attack.run(other, goal, Plan(images=1, iterations=0)) == found
    seed = 1 if isinstance(attack, P4D) else 0  # P4D's first stream is that of its noise
    drawn = RandomToken(tokens=2, seed=seed).run(Deployed(tiny(), steps=2), goal, Plan(images=1))
    assert [(a.case, f"{a.prompt} {CASES[a.case].prompt}", a.seed) for a in found] == [(a.case, a.prompt, a.seed) for a in drawn]
    more = dataclasses.replace(attack, steps=10) if isinstance(attack, MMA) else attack
    moved = [more.run(deployed, goal, Plan(images=1, iterations=10)) for deployed in (Deployed(tiny(), steps=2), other)]
    assert {a.prompt for a in moved[0]} != {a.prompt for a in found}, "steps move it"
    assert {a.prompt for a in moved[0]} != {a.prompt for a in moved[1]}, "and the model says where"


def test_unlearndiff_spends_the_budget_that_its_images_leave() -> None:
    """An iteration is one prediction of the deployed system, forward and backward."""
    deployed, attack = Deployed(tiny(), steps=2), build_attack("unlearndiff", preset="tiny")
    fixed = deployed.reference_cost(2.0) + attack.pictures * deployed.per_image(2.0)  # type: ignore[attr-defined]
    for budget, iterations in ((fixed, 0), (fixed + 2 * deployed.rows - 1, 0), (fixed + 14 * deployed.rows, 7)):
        assert attack.plan(deployed, GOAL, budget).iterations == iterations


def test_the_cost_of_an_attack_is_its_search_and_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3 cases with 2 images of 2 guided sampler steps, one step of which was made by the search."""
    monkeypatch.setattr(UnlearnDiff, "plan", lambda self, deployed, goal, budget: Plan(2, forward=5, backward=3, skipped=1))
    assert Unit("x", UnlearnDiff(), Deployed(tiny(), 2), GOAL).cost(100) == 5 + 3 + (2 * 3 * 2 - 1) * 2


def test_unlearndiff_takes_as_many_timesteps_as_the_schedule_has() -> None:
    deployed = Deployed(tiny(), steps=2)
    assert build_attack("unlearndiff", preset="tiny", settings={"timesteps": "1000"}).plan(deployed, GOAL, 10_000).images
    with pytest.raises(BadOption, match="the schedule has 1000 levels"):
        build_attack("unlearndiff", preset="tiny", settings={"timesteps": "1001"}).plan(deployed, GOAL, 10_000)


LOCK_STEP = [
    build_attack("unlearndiff", preset="tiny"),
    build_attack("p4d", preset="tiny"),
    NoiseProbe(),
    Completion(most=2),
    LatentInversion(),
]


@pytest.mark.parametrize("chunk", [32, 2])
@pytest.mark.parametrize("attack", LOCK_STEP, ids=lambda a: a.name)
def test_cases_in_lock_step_do_not_see_each_other(attack: Attack, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cases in one batch, or in batches of two and one, give the words of each case alone, and its latents."""
    for name, module in list(sys.modules.items()):
        if name.startswith("efface.attacks.") and hasattr(module, "CHUNK"):
            monkeypatch.setattr(module, "CHUNK", chunk)
    deployed = Deployed(tiny(), steps=3)
    together = attack.run(deployed, GOAL, Plan(2, 6))
    alone = [
        dataclasses.replace(a, case=i)
        for i, case in enumerate(CASES)
        for a in attack.run(deployed, Goal("cat", (case,)), Plan(2, 6))
    ]
    assert len(together) == 2 * len(CASES)
    for a, b in zip(*(sorted(part, key=lambda x: (x.case, x.stage, x.seed)) for part in (together, alone)), strict=True):
        assert dataclasses.replace(a, latent=None) == dataclasses.replace(b, latent=None)
        if a.latent is None or b.latent is None:
            assert a.latent is b.latent
        else:
            # A batch of another size sums in another order: in float32, latents of up to 10 differ by up to 1e-5.
            torch.testing.assert_close(a.latent, b.latent, rtol=0, atol=1e-4)


def test_the_search_lowers_its_loss() -> None:
    """The learned word denoises the references better than the word it started from, on levels and noise it was not fitted to."""
    model = tiny()
    deployed, attack = Deployed(model, steps=2), ConceptInversion(references=4, batch=8, lr=0.1, pictures=1)
    x = deployed.references([dataclasses.replace(CASES[0], seed=s) for s in range(50, 66)])
    t = torch.arange(30, 990, 60)
    noise = model.noise(len(x), torch.Generator().manual_seed(5))
    ab = model.schedule.ab(t)
    z = ab.sqrt() * x + (1 - ab).sqrt() * noise

    def loss(iterations: int) -> float:
        c = attack.run(deployed, GOAL, Plan(1, iterations))[0].cond
        assert c is not None
        with torch.no_grad():
            return float((noise - model.predict(z, t, c.repeat(len(x)))).square().mean())

    assert loss(60) < loss(0)


def test_rewording_keeps_the_rest_of_the_prompt() -> None:
    assert reworded("a photo of a dog on a red background", "dog", "animal") == "a photo of an animal on a red background"
    assert reworded("dog", "dog", "puppy") == "puppy"
    assert reworded("a hot dog", "dog", "puppy") == "a hot puppy"


# -- what counts ------------------------------------------------------------------------------------------------------


def row(attack: str, case: int, hit: bool, *, base: bool = True, valid: bool = True) -> AttemptRow:
    return AttemptRow(
        attack, f"c{case}", "cat", "p", 0, "s", base, valid, None if valid else "uniform", "cat" if hit else "dog", 0.5
    )


FACTS = {
    "direct": {"role": "baseline", "tier": "T0", "gate": "plain", "target": "cat"},
    "a": {"role": "attack", "tier": "T4", "gate": "plain", "target": "cat"},
    "b": {"role": "attack", "tier": "T0", "gate": "own", "target": "cat"},
    "k": {"role": "control", "tier": "T2", "gate": "plain", "target": "cat"},
}


def test_planted_attack_rates_are_recovered() -> None:
    rows = {
        "direct": [row("direct", i, i == 0, base=i < 5) for i in range(6)],
        "a": [row("a", i, i in (1, 5) and j == 1, base=i < 5) for i in range(6) for j in range(2)],
        "b": [row("b", i, i in (2, 3), base=i != 3) for i in range(6)],
        "k": [row("k", i, i == 4, base=i < 5) for i in range(6)],
    }
    found = summarise_attacks(rows, FACTS, {"direct": (), "a": ("k",), "b": (), "k": ()})
    a, b = found["attacks"]["a"], found["attacks"]["b"]
    assert (a["rate"]["k"], a["rate"]["n"]) == (1, 5), "case 5 is not the base model's: it does not count"
    assert (a["all"]["k"], a["all"]["n"]) == (2, 6)
    assert (b["rate"]["k"], b["rate"]["n"]) == (1, 5), "a wording the base model does not understand counts for nothing"
    assert (found["union"]["k"], found["union"]["n"]) == (4, 5), "cases 0, 1 and 2, and case 4, which the control breaks"
    assert found["union"]["over"] == ["direct", "a", "b", "k"]
    assert a["excess"]["k"]["value"] == 0
    assert a["excess"]["k"]["n"] == 5


def test_an_invalid_image_breaks_nothing_and_resists_nothing() -> None:
    rows = {
        "direct": [row("direct", 0, False), row("direct", 1, False, valid=False), row("direct", 2, False)],
        "a": [row("a", 0, True, valid=False), row("a", 1, True, valid=False), row("a", 2, False), row("a", 2, True, valid=False)],
    }
    found = summarise_attacks(rows, FACTS, {"direct": (), "a": ("direct",)})
    a, union = found["attacks"]["a"], found["union"]
    assert (a["rate"]["k"], a["rate"]["n"], a["undecided"], a["invalid"]) == (0, 1, 2, 3), "case 2 has a valid image"
    assert (a["all"]["k"], a["all"]["n"]) == (0, 1)
    assert a["excess"]["direct"]["n"] == 1, "compared where both decide"
    assert (union["k"], union["n"], union["undecided"]) == (0, 2, 1), "case 0 is decided by the plain prompt"


class Oracle:
    """A judge that says yes, or no."""

    facts = {"report": {"name": "oracle"}, "clip": {"name": "oracle"}}  # noqa: RUF012

    def __init__(self, says: bool) -> None:
        self.says = says

    def calibrate(self, images: Tensor) -> None: ...
    def detect(self, images: Tensor, concepts: Any) -> list[tuple[str | None, float | None, str | None]]:
        return [(c if self.says else "dog", 0.5, None) for c in concepts]

    def embed_images(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def clip_t(self, images: Tensor, prompts: Any) -> list[float | None]:
        return [None] * len(prompts)


SMALL = Profile("small", 2, 2.0, {"direct": 3})


def test_a_stopped_attack_continues_and_another_one_is_refused(tmp_path: Path) -> None:
    model = tiny()
    units = [Unit(n, build_attack(n, preset="tiny"), Deployed(model, 2), GOAL) for n in ("random_token", "unlearndiff")]
    first = run_attacks(units, SMALL, Oracle(True), tmp_path / "a", 40, calibration=CASES)
    (tmp_path / "a" / "attempts-unlearndiff.jsonl").unlink()
    kept = (tmp_path / "a" / "attempts-random_token.jsonl").stat().st_mtime_ns
    assert run_attacks(units, SMALL, Oracle(True), tmp_path / "a", 40, calibration=CASES) == first
    assert (tmp_path / "a" / "attempts-random_token.jsonl").stat().st_mtime_ns == kept, "a complete attack is not run again"
    with pytest.raises(BadFile, match="another --out"):
        run_attacks(units, SMALL, Oracle(True), tmp_path / "a", 41, calibration=CASES)
    (tmp_path / "a" / "attempts-unlearndiff.jsonl").write_text("{}\n")
    with pytest.raises(BadFile, match="delete it"):
        read_attempts(tmp_path / "a", "unlearndiff")


@pytest.mark.parametrize("names", [("random_token", "unlearndiff"), ("p4d", "relearn")])
def test_the_order_of_the_attacks_does_not_matter(names: tuple[str, str], tmp_path: Path) -> None:
    for folder, order in (("a", names), ("b", names[::-1])):
        deployed = erased()
        units = [Unit(n, build_attack(n, preset="tiny"), deployed, GOAL) for n in order]
        run_attacks(units, SMALL, Oracle(True), tmp_path / folder, 60, calibration=CASES)
    for name in names:
        first, second = (tmp_path / folder / f"attempts-{name}.jsonl" for folder in "ab")
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size > 0


def test_nothing_to_bring_back_is_an_error(tmp_path: Path) -> None:
    units = [Unit("direct", build_attack("direct", preset="tiny"), Deployed(tiny(), 2), GOAL, "baseline")]
    with pytest.raises(EvaluationError, match="nothing to bring back"):
        run_attacks(units, SMALL, Oracle(False), tmp_path / "a", 40, calibration=CASES)


def test_an_attack_that_spends_more_than_it_planned_is_caught(tmp_path: Path) -> None:
    class Cheat(RandomToken):
        name = "cheat"

        def run(self, deployed: Deployed, goal: Goal, plan: Plan) -> list[Attempt]:
            deployed.references(goal.cases[:1])
            return super().run(deployed, goal, plan)

    with pytest.raises(EvaluationError, match="plan"):
        run_attacks(
            [Unit("cheat", Cheat(), Deployed(tiny(), 2), GOAL)], SMALL, Oracle(True), tmp_path / "a", 40, calibration=CASES
        )


def test_all_attacks_together_come_cheapest_first_and_say_what_is_left_out(tmp_path: Path, monkeypatch: Any) -> None:
    model = tiny()
    patch = verbs.erase(model, UCE(), targets=["cat"])
    monkeypatch.setattr(sys.modules["efface.verbs.attack"], "judge_for", lambda *_, **__: Oracle(True))
    facts: dict[str, Any] = {"patch": patch, "cases": 2, "profile": SMALL, "near": ["dog"], "far": ["bus"]}
    summary = verbs.attack(model, "all", budget=40, out=tmp_path / "a", **facts)
    run, left = {n for n, a in summary["attacks"].items() if a["role"] in ("attack", "apart")}, summary["left_out"]
    assert run | set(left) | {"direct", "seed_search", "random_token"} == set(ATTACKS)
    assert {"p4d", "relearn", "restore", "noise_probe"} <= run
    assert "no synonym wording" in left["synonym"]
    spent = [sum(a["cost"][k] for k in ("forward", "backward")) for a in summary["attacks"].values() if a["role"] != "control"]
    assert spent[1:] == sorted(spent[1:]), "the plain prompt, then the cheapest attack"
    assert set(summary["tiers"]) == {"T0", "T1", "T2", "T3", "T4", "T5"}
    assert "restore" not in summary["union"]["over"]
    kept = (tmp_path / "a" / "summary.json").read_bytes()
    assert verbs.attack(model, "all", budget=40, out=tmp_path / "a", **facts) == summary
    assert (tmp_path / "a" / "summary.json").read_bytes() == kept
    table = attack_table(summary)
    assert "union up to T3" in table
    assert "synonym was left out: no synonym wording" in table
    assert "restore: cases that show the target at share 0.25: 2 of 2" in table
    with pytest.raises(BadOption, match="no attack can be made"):
        verbs.attack(model, "all", budget=1, **facts)


# -- planted truths on the trained miniature ----------------------------------------------------------------------------


def renamed(model: Any, target: str, other: str) -> Patch:
    """An "erasure" that knows nothing but the name: the target's last token now means the other's."""
    (name,) = model.weights(lambda n: "token_embedding" in n)
    table = model.weights(lambda n: n == name)[name]
    mine, theirs = (model.token_ids([word])[0][-2] for word in (target, other))
    changed = table.detach().clone()
    changed[mine] = table[theirs]
    card = UCE().card(model, request_for(model, [target]), model.evals.snapshot())
    return Patch.between({name: table}, {name: changed}, card)


@pytest.mark.slow
def test_an_erasure_of_the_name_alone_is_broken_by_inversion(tmp_path: Path) -> None:
    PROFILES["few"] = Profile("few", 8, 4.0, {"direct": 8, "near": 24})
    try:
        model = load_model("mini")
        found = verbs.attack(
            model, "concept_inversion", budget=400, patch=renamed(model, "dog", "castle"), cases=3, profile="few", controls=False,
            out=tmp_path / "a",
        )  # fmt: skip
    finally:
        del PROFILES["few"]
    assert found["attacks"]["direct"]["rate"]["k"] == 0, "the planted erasure works on the plain prompts"
    assert found["attacks"]["concept_inversion"]["rate"]["k"] == found["attacks"]["concept_inversion"]["rate"]["n"] > 0
    assert found["attacks"]["concept_inversion"]["cost"]["backward"] > 0
    assert len((tmp_path / "a" / "attempts-concept_inversion.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "budget"), [("unlearndiff", 1200), ("synonym", 96), ("seed_search", 240), ("random_token", 240)]
)
def test_attacks_against_an_erasure_of_the_name_alone(name: str, budget: int) -> None:
    """Other words and gradients break it; new seeds of the same name do not."""
    model = load_model("mini")
    found = verbs.attack(model, name, budget=budget, patch=renamed(model, "dog", "castle"), cases=4, controls=False)["attacks"]
    assert found["direct"]["rate"]["k"] == 0
    if name in ("unlearndiff", "synonym"):
        assert found[name]["rate"]["k"] > 0
    if name == "seed_search":
        assert found[name]["rate"]["k"] == 0


@pytest.mark.slow
def test_inverse_undoes_a_closed_form_edit() -> None:
    model = load_model("mini")
    found = verbs.attack(model, "inverse", budget=48, patch=verbs.erase(model, "uce", targets=["dog"]), cases=4)["attacks"]
    assert found["inverse"]["rate"]["k"] > found["seed_search"]["rate"]["k"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unlearndiff", "concept_inversion", "seed_search", "random_token"])
def test_a_network_of_random_weights_has_nothing_to_give(name: str) -> None:
    model = load_model("mini")
    weights = model.weights(lambda n: n.startswith("unet.") and n.endswith("weight"))
    rng = torch.Generator().manual_seed(0)
    broken = {n: torch.randn(w.shape, generator=rng) * w.std() for n, w in weights.items() if w.ndim > 1}
    card = UCE().card(model, request_for(model, ["dog"]), model.evals.snapshot())
    patch = Patch.between({n: weights[n] for n in broken}, broken, card)
    found = verbs.attack(model, name, budget=400, patch=patch, cases=4, controls=False)["attacks"][name]
    assert found["rate"]["n"] > 0
    assert found["rate"]["k"] == 0


# -- as a user meets it -----------------------------------------------------------------------------------------------


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.mark.usefixtures("smaller_smoke")
def test_command_line(tmp_path: Path) -> None:
    result = run(
        "attack", "seed_search", "--model", "mini", "--target", "dog", "--budget", 20, "--cases", 2, "--profile", "smoke",
        "--out", tmp_path / "a", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["attacks"]["seed_search"]["rate"]["n"] == 2
    assert facts["attacks"]["seed_search"]["cost"] == {"forward": 40, "backward": 0, "images": 4, "cases": 2}
    assert "UNet evaluations" in result.stderr, "the cost is announced before the run"
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["union"] == facts["union"]
    again = run(
        "attack", "seed_search", "--model", "mini", "--target", "dog", "--budget", 20, "--cases", 2, "--profile", "smoke",
        "--out", tmp_path / "a",
    )  # fmt: skip
    assert again.exit_code == 0
    assert "union" in again.stdout


def test_help_lists_the_attacks_own_options() -> None:
    text = run("attack", "unlearndiff", "--help").output
    for part in ("tokens = 3", "official configs", "Tier T4", "--budget", "mini: tokens=2"):
        assert part in text, part
    assert "concept_inversion" in run("attack", "--help").output
    assert run("list", "attacks").output.count("\n") == len(ATTACKS)
    assert run("list", "guards").output.count("\n") == len(GUARDS)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("attack", "unlerndiff", "--target", "dog", "--budget", 9), "Did you mean 'unlearndiff'"),
        (("attack", "direct", "--target", "dgo", "--budget", 99), "Did you mean 'dog'"),
        (("attack", "direct", "--budget", 99), "name one with --target"),
        (("attack", "unlearndiff", "--target", "dog", "--budget", 119), "needs 120 or more"),
        (("attack", "direct", "--target", "dog", "--budget", 99, "--cases", 61), "has 60 cases"),
        (("attack", "inverse", "--target", "dog", "--budget", 99), "give one with --patch"),
        (("attack", "direct", "--target", "dog", "--budget", 99, "--guard", "slt"), "Did you mean 'sld'"),
        (("attack", "unlearndiff", "--target", "dog", "--budget", 999, "--set", "tokns=3"), "Did you mean 'tokens'"),
        (("attack", "unlearndiff", "--target", "dog", "--budget", 999, "--set", "pictures=0"), "below its smallest value"),
        (("attack", "all", "--target", "dog", "--budget", 99, "--preset", "mini"), "take their presets"),
        (("evaluate", "--out", "nowhere"), "nothing to measure"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args: tuple[object, ...], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_target_must_be_the_patchs() -> None:
    model = tiny()
    patch = verbs.erase(model, UCE(), targets=["cat", "dog"])
    with pytest.raises(BadOption, match="say which"):
        verbs.attack(model, "direct", budget=99, patch=patch)
    with pytest.raises(UnknownName, match="target of the patch"):
        verbs.attack(model, "direct", budget=99, patch=patch, target="bus")
