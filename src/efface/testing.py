"""Contract checks for authors of methods, attacks, guards, detectors, worlds and suites.

>>> from efface.testing import check_method
>>> check_method(MyMethod(steps=3))  # doctest: +SKIP

:func:`check_method`, :func:`check_resume`, :func:`check_attack` and :func:`check_guard` run what they are given on a tiny model;
:func:`check_detector`, :func:`check_world` and :func:`check_suite` look at what they are given. They raise AssertionError, with
the reason, where it breaks its contract.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .attacks import Attack, Attempt, Deployed, Goal
from .concepts.prompts import Case
from .concepts.request import ATTRIBUTE, STYLE, EraseRequest
from .detectors.base import Detector
from .errors import BadOption, EffaceError
from .evaluation.suite import Suite, SuiteSource
from .guards import Guard
from .methods.base import Method
from .models.base import DiffusionModel
from .models.tiny import tiny
from .models.world import World, WorldSource
from .patches import Patch
from .training.loop import Run, Step


def state(model: DiffusionModel) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {n: p.detach().clone() for n, p in model.weights(lambda _: True).items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Bit-identical tensors under the same names."""
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def hooks(model: DiffusionModel) -> int:
    """Number of forward and backward hooks anywhere in the model's modules."""
    model.encode([""])  # transformers puts hooks of its own into an encoder that is asked for hidden states, once
    modules = [m for part in vars(model).values() if isinstance(part, torch.nn.Module) for m in part.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules)


def random_states() -> dict[str, object]:
    """The states of the global random generators of torch, Python and numpy, comparable."""
    parts: Any = np.random.get_state()
    numbers = [part.tolist() if isinstance(part, np.ndarray) else part for part in parts]
    return {"torch": torch.get_rng_state().tolist(), "Python": random.getstate(), "numpy": numbers}


def moved(before: Mapping[str, object]) -> str:
    """The libraries whose random state is another than ``before``."""
    return ", ".join(library for library, now in random_states().items() if now != before[library])


def check_method(
    method: Method, request: EraseRequest | None = None, model: DiffusionModel | None = None, *, at_least: bool = False
) -> Patch:
    """Run the method on a tiny model, assert its contract, and return the patch for further checks.

    The model that is passed in is not changed, and no hooks and no gradients are left on it. The same seed gives the same bits,
    and the global random state is left alone. Applying and reverting the patch is bit-exact, also after an exception inside.
    Saving and loading the patch changes nothing. The evaluations that were counted are on the card and agree with
    ``expected_evals``; see :func:`check_cost`. A NaN among the weights ends in an error and not in a patch.

    ``at_least``: ``expected_evals`` is only a lower bound, because the cost depends on what the method finds. A method whose
    ``at_most`` is true gives an upper bound.
    """
    model = model or tiny()
    request = request or EraseRequest(("cat",), "", ("dog",))
    before, hooks_before, rng = state(model), hooks(model), random_states()
    spent = model.evals.forward
    patch = method.erase(model, request, Run())
    spent = model.evals.forward - spent
    assert same(state(model), before), "erase() changed the model it was given"
    assert not moved(rng), f"erase() moved the global random state of {moved(rng)}"
    assert hooks(model) == hooks_before, "erase() left hooks behind"
    assert all(p.grad is None and not p.requires_grad for p in model.weights(lambda _: True).values()), (
        "gradients were left behind"
    )
    assert patch.deltas, "the patch is empty"
    assert patch.card.cost["forward"] == spent, f"the card says {patch.card.cost['forward']} evaluations, {spent} were counted"
    assert same(method.erase(model, request, Run()).deltas, patch.deltas), "the same seed gave another patch"
    with patch.applied(model):
        assert not same(state(model), before), "applying changed nothing"
    assert same(state(model), before), "reverting is not bit-exact"
    try:
        with patch.applied(model):
            raise RuntimeError("inside")
    except RuntimeError:
        pass
    assert same(state(model), before), "reverting after an exception is not bit-exact"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patch.safetensors"
        patch.save(path)
        again = Patch.load(path)
    assert same(again.deltas, patch.deltas), "saving and loading changed the patch"
    assert again.json() == patch.json(), "saving and loading changed the card"
    expected = method.expected_evals(model, request)
    if method.at_most:
        assert spent <= expected, f"expected_evals says at most {expected:g} evaluations, {spent} were counted"
    elif at_least:
        assert spent >= expected, f"expected_evals says at least {expected:g} evaluations, {spent} were counted"
    else:
        check_cost(method, request, model, spent)
    check_nan(method, request, model, patch)
    return patch


SEEDS, STANDARD_ERRORS = 6, 5.0
"""Runs that the cost of a random method is averaged over, and how far the mean may be off. With six runs a correct method is off
by five standard errors in about 1 of 240 cases (Student's t with 5 degrees of freedom)."""


def check_cost(method: Method, request: EraseRequest, model: DiffusionModel, spent: int) -> None:
    """Assert that ``spent``, the evaluations counted in one run, agrees with ``expected_evals``.

    Equal figures pass. A method that draws the length of its trajectories at random spends another number with every seed; it is
    run with more seeds, and the mean must be within :data:`STANDARD_ERRORS` standard errors of what is expected.
    """
    expected = method.expected_evals(model, request)
    if abs(spent - expected) < 0.5:
        return
    told = f"expected_evals says {expected:g} evaluations, {spent} were counted"
    assert "seed" in {f.name for f in dataclasses.fields(method)}, told
    counts = [spent]
    options = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init}
    for seed in range(options["seed"] + 1, options["seed"] + SEEDS):
        before = model.evals.forward
        type(method)(**{**options, "seed": seed}).erase(model, request, Run())
        counts.append(model.evals.forward - before)
    mean, error = statistics.fmean(counts), statistics.stdev(counts) / SEEDS**0.5
    assert abs(mean - expected) <= STANDARD_ERRORS * error, f"{told}, and with {SEEDS} seeds {mean:g} +- {error:.3g} on average"


def check_nan(method: Method, request: EraseRequest, model: DiffusionModel, patch: Patch) -> None:
    """Assert that the method raises an EffaceError when one of the weights that ``patch`` changes holds a NaN."""
    name, delta = max(patch.deltas.items(), key=lambda item: item[1].numel())
    broken = torch.zeros_like(delta)
    broken.view(-1)[0] = math.nan
    with Patch({name: broken}, patch.card).applied(model):
        try:
            method.erase(model, request, Run())
        except EffaceError:
            return
    raise AssertionError(f"a NaN in {name} ended in a patch and not in an error")


def check_resume(method: Method, request: EraseRequest, model: DiffusionModel) -> Patch:
    """Stop the method after its third update, continue from the checkpoint of the second, and assert that the patch is that of a
    run that was never stopped, log included. The method must make more than three updates."""

    class Stopped(Exception):
        pass

    def stop(step: Step, total: int) -> None:
        if step.index == 2:
            raise Stopped

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.safetensors"
        try:
            method.erase(model, request, Run(checkpoint=checkpoint, every=2, on_step=stop))
        except Stopped:
            pass
        else:
            raise AssertionError("the run ended before its third update")
        resumed = method.erase(model, request, Run(checkpoint=checkpoint, resume=True))
    whole = method.erase(model, request)
    assert same(resumed.deltas, whole.deltas), "the resumed run gave another patch"
    assert resumed.card.log == whole.card.log, "the resumed run has another log"
    return resumed


def check_attack(attack: Attack, deployed: Deployed | None = None, budget: int = 40, goal: Goal | None = None) -> list[Attempt]:
    """Run the attack against a tiny model, assert its contract, and return the attempts for further checks.

    No weight is changed, no gradient is left on one, and the global random states of torch, Python and numpy are left alone. The
    same seed gives the same attempts, and every case has as many as were planned. The evaluations that are counted, images
    included, are those that were planned, and they are within the budget. A budget below the least one is refused before anything
    is computed.
    """
    deployed = deployed or Deployed(tiny(), steps=2, targets=("cat",))
    cases = tuple(Case("direct", "cat", p, s, 2.0) for p, s in (("a cat", 1), ("a photo of a cat", 2), ("the cat", 3)))
    words = {"synonym": ("dog",), "group": ("a house",), "implicit": ("a photo of the house",)}
    goal = goal or Goal("cat", cases, words)
    model = deployed.original
    before, hooks_before, rng = state(model), hooks(model), random_states()
    plan, n = attack.plan(deployed, goal, budget), len(goal.cases)
    spent = model.evals.forward, model.evals.differentiated
    attempts = attack.run(deployed, goal, plan)
    forward, backward = model.evals.forward - spent[0], model.evals.differentiated - spent[1]
    assert same(state(model), before), "run() changed the model"
    assert not moved(rng), f"run() moved the global random state of {moved(rng)}"
    assert hooks(model) == hooks_before, "run() left hooks behind"
    assert model.guide is None, "run() left a guard behind"
    assert "encode" not in vars(model), "run() left the guard's encoding behind"
    assert all(p.grad is None and not p.requires_grad for p in model.weights(lambda _: True).values()), "gradients were left"
    assert (forward, backward) == (plan.forward, plan.backward), f"planned {plan}, counted {forward} and {backward}"
    steps = plan.images * n * deployed.steps - plan.skipped
    total = forward + backward + steps * deployed.per_step(goal.guidance)
    assert total <= n * budget, f"{total} evaluations for a budget of {n} x {budget}"
    assert [sum(a.case == i for a in attempts) for i in range(n)] == [plan.images] * n, "not the planned images per case"
    assert [shown(a) for a in attack.run(deployed, goal, plan)] == [shown(a) for a in attempts], (
        "the same seed gave other attempts"
    )
    least = next(b for b in range(budget + 1) if affordable(attack, deployed, goal, b))
    assert least > 0, "a budget of nothing was accepted"
    assert not affordable(attack, deployed, goal, least - 1)
    return attempts


def check_guard(guard: Guard, targets: tuple[str, ...] = ("cat",), model: DiffusionModel | None = None) -> None:
    """Run the guard on a tiny model and assert its contract.

    No weight is changed. Inside ``active`` an image takes ``branches`` UNet evaluations per step, and some image of a prompt that
    names the target differs from the one without the guard: give it settings under which it acts on random weights. Outside,
    nothing of the guard is left, also after an exception.
    """
    model = model or tiny()
    prompts = [f"a {targets[0]}", f"a photo of a {targets[0]}", f"the {targets[0]} in the house"]
    cases, steps = [Case("direct", targets[0], prompt, i, 3.0) for i, prompt in enumerate(prompts)], 10
    before, hooks_before, plain = state(model), hooks(model), model.sample(cases, steps)
    spent = model.evals.forward
    with guard.active(model, targets):
        guarded = model.sample(cases, steps)
    per_step = (model.evals.forward - spent) / (steps * len(cases))
    assert per_step == guard.branches, f"branches says {guard.branches} evaluations per step, {per_step:g} were counted"
    assert not torch.equal(guarded, plain), "the guard changed nothing"
    try:
        with guard.active(model, targets):
            raise RuntimeError("inside")
    except RuntimeError:
        pass
    assert same(state(model), before), "the guard changed the weights"
    assert hooks(model) == hooks_before, "the guard left hooks behind"
    assert model.guide is None, "the guard left a guide behind"
    assert "encode" not in vars(model), "the guard left its encoding behind"
    assert torch.equal(model.sample(cases, steps), plain), "images without the guard are not as before"


def shown(attempt: Attempt) -> tuple[object, ...]:
    """What an attempt is, comparable."""
    c = attempt.cond.tokens.tolist() if attempt.cond is not None else None
    z = attempt.latent.tolist() if attempt.latent is not None else None
    return attempt.case, attempt.prompt, attempt.seed, attempt.stage, c, z, attempt.taken


def affordable(attack: Attack, deployed: Deployed, goal: Goal, budget: int) -> bool:
    """Whether the attack takes this budget."""
    try:
        attack.plan(deployed, goal, budget)
    except BadOption:
        return False
    return True


def check_detector(cls: type[Detector], names: Sequence[str] = ("cat", "dog")) -> None:
    """Build the detector for ``names`` and assert its contract.

    It can name all of them and at least one thing more; probabilities are a (B, names) table whose rows sum to 1; a row does not
    depend on the other images, and the same images give the same bits; an image that is not finite is NaN throughout.
    """
    detector = cls(tuple(names))
    assert set(names) < set(detector.names), 'names must hold those that were asked for, and one that means "none of them"'
    assert detector.facts.get("name"), "facts must hold a name, for the records"
    images = torch.rand((5, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images[4, 0, 0, 0] = torch.nan
    seen = detector.look(images)
    p, good = seen.probabilities, seen.probabilities[:4]
    assert p.shape == (5, len(detector.names)), f"probabilities have the shape {tuple(p.shape)}"
    assert bool((good >= 0).all()), "a probability is negative"
    assert [n for head in detector.heads for n in head] == list(detector.names), "the heads are not the names in their order"
    assert len(set(detector.names)) == len(detector.names), "a name stands twice"
    for part in good.split([len(head) for head in detector.heads], dim=1):
        assert torch.allclose(part.sum(1), torch.ones(4), atol=1e-5), "probabilities do not sum to 1"
    assert seen.features.ndim == 2, "features must be one vector per image"
    assert len(seen.features) == 5, "features must be one vector per image"
    assert bool(p[4].isnan().all()), "an image with a NaN pixel must be NaN throughout"
    again = detector.look(images[:4])
    assert torch.equal(again.probabilities, detector.look(images[:4]).probabilities), "the same images gave other probabilities"
    assert torch.allclose(again.probabilities[1:2], detector.look(images[1:2]).probabilities, atol=1e-5), (
        "a row depends on the other images of the batch"
    )


def check_world(source: WorldSource) -> World:
    """Assert that a world is complete, and return it: every concept has what evaluations and attacks ask for, what it names
    exists, rates are between 0 and 1, and some concept is recognised well enough to be measured."""
    world = source.world()
    assert world.name == source.name, f"the world is called {world.name!r}, its source {source.name!r}"
    for what in ("sensitivity", "synonyms", "descriptions"):
        missing = [n for n in world.groups if n not in getattr(world, what)]
        assert not missing, f"{what} says nothing of {missing[0]!r}"
    assert all(0 <= s <= 1 for s in world.sensitivity.values()), "a sensitivity is no share"
    unknown = [g for g in world.groups.values() if g not in world.group_words]
    assert not unknown, f"group_words has no word for the group {unknown[0]!r}"
    named = {n for ranks in world.similar.values() for names in ranks.values() for n in names} | set(world.unseen)
    named |= set(world.study_targets)
    named |= {n for members in world.collections.values() for n in members.names}
    assert named <= set(world.groups), f"{sorted(named - set(world.groups))[0]!r} is no concept of the world"
    assert len(set(world.names())) == len(world.names()), "a concept, a category, a style or an attribute have one name"
    for name, m in world.modifiers.items():
        assert m.name == name, f"the modifier {name!r} calls itself {m.name!r}"
        assert m.kind in (STYLE, ATTRIBUTE), f"{name!r} is neither a style nor an attribute"
        assert m.forms, f"nothing asks for {name!r}"
        assert all("{}" in f and m.word in f for f in m.forms), f"a prompt for {name!r} lacks its word or a place for the concept"
        assert all("{}" in f for f in m.other_forms), f"another prompt for {name!r} has no place for the concept"
        assert 0 <= m.sensitivity <= 1, f"the sensitivity of {name!r} is no share"
        assert set(m.subjects) <= set(world.groups), f"{name!r} is shown on something that is no concept of the world"
    assert world.usable(), "no concept is recognised well enough to be measured"
    assert world.judge.count(":") == 1, "judge must be an import path module:name"
    alien = [m for m in source.models if m != source.name and not m.startswith(f"{source.name}-")]
    assert not alien, f"the model {alien[0]!r} is not called after the world"
    return world


def check_suite(source: SuiteSource, world: World | None, targets: Sequence[str]) -> Suite:
    """Assert that a protocol gives a suite for these targets, and return it: no concept stands on two axes, there is something to
    keep, every template has its place for the concept, and the same request gives the same suite."""
    suite = source.suite(world, targets)
    assert suite == source.suite(world, targets), "the same targets gave another suite"
    assert suite.targets == tuple(targets), f"the suite is for {suite.targets}"
    names = list(suite.names)
    assert len(set(names)) == len(names), "a concept stands on two axes"
    assert suite.near, "the suite keeps nothing near"
    assert suite.far, "the suite keeps nothing far"
    assert suite.templates, "the suite has no prompts"
    assert all("{}" in t for t in suite.templates), "a template has no {} for the concept"
    return suite
