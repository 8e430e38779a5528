"""What one cell of a bench computes: an erasure, an evaluation of one entrant, or one attack on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from ..errors import BadFile, EvaluationError, WrongBaseModel
from ..evaluation.attack import facts_of, plain_hits, run_unit
from ..evaluation.driver import System, blocklist, measure
from ..evaluation.records import Entrant
from ..models.select import ENCODERS
from ..patches import Patch
from ..patches.patch import noise_like
from ..plans.cells import Cell
from ..plans.plan import BASE, EntrantPlan, Plan
from ..plans.records import Store
from ..registry import build_guard
from ..training import Run
from .erase import erase_request
from .hub import load_patch
from .planned import Subject, gold_of, loaded, method_of, patch_path, request_of, subject_of, suite_of, units_of


def perform(cell: Cell, store: Store) -> dict[str, Any]:
    """The result of a cell, as plain data that is the same to the bit whoever computes it.

    Raises WrongBaseModel where the model is another one than the plan was made for, EvaluationError where nothing true can be
    said, BadFile where the patch of the cell is gone, and what methods and attacks raise.
    """
    with one_thread():
        return _perform(cell, store)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes with one thread on the CPU: the last bits of a sum depend on their number, and several workers share
    the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _perform(cell: Cell, store: Store) -> dict[str, Any]:
    subject = subject_of(cell.how["plan"], cell.how["model"], cell.how["targets"])
    if subject.digest != cell.inputs["model"]:
        loaded.cache_clear()
        raise WrongBaseModel(f"the model {cell.how['model']} is another one than the plan was made for, or its weights changed.")
    result = {"erase": _erase, "evaluate": _evaluate, "attack": _attack}[cell.kind](cell, store, subject)
    subject.model.weights_changed()
    if subject.model.digest() != cell.inputs["model"]:
        loaded.cache_clear()
        raise EvaluationError(f"{cell.told} left other weights in the model than it found: nothing of it can be trusted.")
    return result


def _erase(cell: Cell, store: Store, subject: Subject) -> dict[str, Any]:
    entrant, model = cell.how["entrant"], subject.model
    method = method_of(cell.how["plan"], entrant, model, cell.how["seed"])
    request, path = request_of(entrant, model, subject.targets), store.patch(cell.key)
    checkpoint = path.with_suffix(".checkpoint")
    path.parent.mkdir(parents=True, exist_ok=True)
    patch = erase_request(model, method, request, Run(checkpoint=checkpoint, resume=checkpoint.exists()))
    patch.save(path)
    checkpoint.unlink(missing_ok=True)  # of a finished erasure nothing is left to be continued
    sizes = {n: d.numel() for n, d in patch.deltas.items()}
    return {
        "patch": patch.digest(),
        "cost": dict(patch.card.cost),
        "tensors": len(sizes),
        "parameters": sum(sizes.values()),
        "text_encoder_parameters": sum(n for name, n in sizes.items() if name.startswith(ENCODERS)),
        "norm": patch.norm(),
        "run": {k: v for k, v in patch.card.log["run"].items() if k == "seconds"},  # with those before a stop
    }


def _made(store: Store, key: str) -> Patch:
    path = store.patch(key)
    if not path.is_file():
        raise BadFile(f"the patch {path} is gone; start the bench again, which makes it anew.")
    return Patch.load(path)


def _deployed_patch(cell: Cell, store: Store) -> Patch | None:
    """The patch of the cell's system, at its strength."""
    plan, entrant, system = cell.how["plan"], cell.how["entrant"], cell.inputs["system"]
    patch = None
    if "patch" in system:
        patch = _made(store, system["patch"])
    elif "patch file" in system:
        patch = load_patch(patch_path(plan, entrant))
    strength = float(system.get("strength", 1.0))
    return patch if patch is None or strength == 1 else patch.scaled(strength)


def _evaluate(cell: Cell, store: Store, subject: Subject) -> dict[str, Any]:
    plan: Plan = cell.how["plan"]
    system = _system(cell, store, subject)
    cases = subject.cases(plan, cell.how["strength"])
    rows = measure(subject.model, system, subject.targets, cases, subject.profile, subject.judge)
    guard = system.guard
    each = subject.profile.steps * guard.branches if guard is not None else subject.profile.evals_per_image(subject.model)
    kept = [{k: v for k, v in asdict(row).items() if k not in ("entrant", "record_version")} for row in rows]
    return {"rows": kept, "evals_per_image": each}


def _system(cell: Cell, store: Store, subject: Subject) -> System:
    entrant: EntrantPlan = cell.how["entrant"]
    facts, targets = cell.inputs["system"], subject.texts
    guard = build_guard(entrant.guard) if entrant.guard else None
    known = Entrant(BASE if entrant.trivial == BASE else "system", entrant.label, "bench")
    if entrant.trivial in ("noise", "blocklist"):
        if entrant.trivial == "blocklist":
            return System(known, None, blocklist([subject.suite.words.get(t, t) for t in targets], ""))
        plan: Plan = cell.how["plan"]
        other = next(o for o in plan.entrants if o.label == entrant.of)
        patch = _made(store, facts["of"]) if "of" in facts else load_patch(patch_path(plan, other))
        return System(known, noise_like(patch, torch.Generator().manual_seed(0)))
    gold = gold_of(subject.model)[0] if entrant.gold else None
    return System(known, _deployed_patch(cell, store), model=gold, guard=guard, targets=tuple(targets))


def _attack(cell: Cell, store: Store, subject: Subject) -> dict[str, Any]:
    plan: Plan = cell.how["plan"]
    entrant, attack = cell.how["entrant"], cell.how["attack"]
    guard = build_guard(entrant.guard) if entrant.guard else None
    patch = _deployed_patch(cell, store)
    units = units_of(plan, subject, attack, cell.how["target"], cell.how["seed"], patch, guard, entrant.gold)
    unit = next(u for u in units if u.label == cell.how["unit"])
    calibration = suite_of(plan, subject, cell.how["target"]).cases(subject.profile)
    plain = plain_hits(subject.model, [unit], subject.profile, subject.judge, calibration)
    if unit.role != "novel" and not any(plain[c] for c in unit.goal.cases):
        raise EvaluationError("the unmodified model shows the target in none of the plain cases: there is nothing to bring back.")
    budget = max(attack.budget, unit.deployed.per_image(unit.goal.guidance)) if unit.role == "baseline" else attack.budget
    rows, spent = run_unit(unit, subject.profile, subject.judge, budget, plain)
    kept = [{k: v for k, v in asdict(row).items() if k not in ("attack", "record_version")} for row in rows]
    # The same run may be an attack of one plan and a control in another: what it is there is said by its place.
    facts = {k: v for k, v in facts_of(unit).items() if k not in ("role", "taught")}
    return {"attempts": kept, "facts": facts, "controls": list(unit.attack.controls), "cost": spent}
