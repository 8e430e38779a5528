"""The contract every method keeps, public for authors of plug-ins: ``check_method(MyMethod(...))``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .concepts.request import EraseRequest
from .methods.base import Method
from .models.base import DiffusionModel
from .models.tiny import tiny
from .patches import Patch
from .training import Run


def state(model: DiffusionModel) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {n: p.detach().clone() for n, p in model.weights(lambda _: True).items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Bit-identical tensors under the same names."""
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def hooks(model: DiffusionModel) -> int:
    """Number of forward and backward hooks anywhere in the model's modules."""
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
