"""The contracts of methods and attacks, public for authors of plug-ins: ``check_method(MyMethod(...))``, ``check_resume`` and
``check_attack``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .attacks import Attack, Attempt, Deployed, Goal
from .concepts.prompts import Case
from .concepts.request import EraseRequest
from .errors import BadOption
from .methods.base import Method
from .models.base import DiffusionModel
from .models.tiny import tiny
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


def check_method(method: Method, request: EraseRequest | None = None, model: DiffusionModel | None = None) -> Patch:
    """Run the method on a tiny model and assert its contract; returns the patch for further checks.

    The input model is never changed; the same seed gives the same bits; the global random state is left alone; applying and
    reverting is bit-exact, also after an exception inside; saving and loading is identity; counted cost is on the card; no
    hooks and no gradients are left behind; a NaN weight ends in an error and not in a patch.
    """
    model = model or tiny()
    request = request or EraseRequest(("cat",), "", ("dog",))
    before, hooks_before, rng = state(model), hooks(model), torch.get_rng_state()
    spent = model.evals.forward
    patch = method.erase(model, request, Run())
    spent = model.evals.forward - spent
    assert same(state(model), before), "erase() changed the model it was given"
    assert torch.equal(torch.get_rng_state(), rng), "erase() moved the global random state"
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
    return patch


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
    """Run the attack against a tiny model and assert its contract; returns the attempts for further checks.

    No weight is changed and no gradient left on one; the global random state is left alone; the same seed gives the same
    attempts; every case has as many as planned; what is counted is what was planned, images included, and within the budget; one
    evaluation less than the least budget is refused before anything is computed.
    """
    deployed = deployed or Deployed(tiny(), steps=2, targets=("cat",))
    cases = tuple(Case("direct", "cat", p, s, 2.0) for p, s in (("a cat", 1), ("a photo of a cat", 2), ("the cat", 3)))
    words = {"synonym": ("dog",), "group": ("a house",), "implicit": ("a photo of the house",)}
    goal = goal or Goal("cat", cases, words)
    model = deployed.original
    before, hooks_before, rng = state(model), hooks(model), torch.get_rng_state()
    plan, n = attack.plan(deployed, goal, budget), len(goal.cases)
    spent = model.evals.forward, model.evals.differentiated
    attempts = attack.run(deployed, goal, plan)
    forward, backward = model.evals.forward - spent[0], model.evals.differentiated - spent[1]
    assert same(state(model), before), "run() changed the model"
    assert torch.equal(torch.get_rng_state(), rng), "run() moved the global random state"
    assert hooks(model) == hooks_before, "run() left hooks behind"
    assert model.guide is None, "run() left a guard behind"
    assert "encode" not in vars(model), "run() left the guard's encoding behind"
    assert all(p.grad is None and not p.requires_grad for p in model.weights(lambda _: True).values()), "gradients were left"
    assert (forward, backward) == (plan.forward, plan.backward), f"planned {plan}, counted {forward} and {backward}"
    total = forward + backward + plan.images * n * deployed.per_image(goal.guidance)
    assert total <= n * budget, f"{total} evaluations for a budget of {n} x {budget}"
    assert [sum(a.case == i for a in attempts) for i in range(n)] == [plan.images] * n, "not the planned images per case"
    assert [shown(a) for a in attack.run(deployed, goal, plan)] == [shown(a) for a in attempts], (
        "the same seed gave other attempts"
    )
    least = next(b for b in range(budget + 1) if affordable(attack, deployed, goal, b))
    assert least > 0, "a budget of nothing was accepted"
    assert not affordable(attack, deployed, goal, least - 1)
    return attempts


def shown(attempt: Attempt) -> tuple[object, ...]:
    """What an attempt is, comparable."""
    c = attempt.cond.tokens.tolist() if attempt.cond is not None else None
    return attempt.case, attempt.prompt, attempt.seed, attempt.stage, c


def affordable(attack: Attack, deployed: Deployed, goal: Goal, budget: int) -> bool:
    """Whether the attack takes this budget."""
    try:
        attack.plan(deployed, goal, budget)
    except BadOption:
        return False
    return True
