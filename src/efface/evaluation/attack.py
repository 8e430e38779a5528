"""Run attacks against a deployed system, render what they found, judge it, and count. An attack never sees a verdict."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attacks import Attack, Attempt, Deployed, Goal, Plan
from ..concepts.minors import minor
from ..concepts.prompts import WITHHELD, Case
from ..errors import BadFile, EvaluationError
from ..io.files import write_text
from ..models.base import DiffusionModel
from ..models.cond import Cond
from .attacked import summarise_attacks
from .cache import BATCH, base_images, quantised
from .driver import Judge, anchor_cases
from .profiles import Profile
from .records import AttemptRow, read_attempts, write_attempts

MINORS = "withheld: speaks of a minor"


@dataclass(frozen=True)
class Unit:
    """One attack on one system. ``role``: an "attack" and its "control" count in the union; "baseline" is no attack; "apart" is
    an attack that the union leaves out; "novel" is the same attack on a model that never saw its concept."""

    label: str
    attack: Attack
    deployed: Deployed
    goal: Goal
    role: str = "attack"

    def plan(self, budget: int) -> Plan:
        return self.attack.plan(self.deployed, self.goal, budget)

    def cost(self, budget: int) -> int:
        """UNet evaluations, forwards and backwards, images included; never more than the budget of all cases."""
        plan = self.plan(budget)
        steps = plan.images * len(self.goal.cases) * self.deployed.steps - plan.skipped
        return plan.forward + plan.backward + steps * self.deployed.per_step(self.goal.guidance)

    def gate_cost(self, budget: int, profile: Profile) -> int:
        """UNet evaluations, at most, of asking the original model whether it shows the target for the attack's own prompts."""
        if self.attack.gate != "own":
            return 0
        return _images(self, budget) * profile.evals_per_image(self.deployed.original)


def run_attacks(
    units: Sequence[Unit],
    profile: Profile,
    judge: Judge,
    folder: Path,
    budget: int,
    *,
    calibration: Sequence[Case],
    left_out: Mapping[str, str] | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    command: str = "",
) -> dict[str, Any]:
    """Run every unit that is not on disk yet; returns the summary, which is also written.

    ``budget``: UNet evaluations per case of every unit but the baseline. ``calibration``: cases whose base images teach the judge
    what is valid, the plain cases among them. ``left_out``: attacks that were asked for and cannot be made, with the reason, for
    the summary. Raises BadOption for a budget that does not suffice before anything is computed,
    EvaluationError when the original model draws the target in no case.
    """
    original = units[0].deployed.original
    costs = {u.label: u.cost(budget) for u in units}
    total, done = sum(_images(u, budget) for u in units), 0
    key = _key(units, profile, judge, budget)
    _open_folder(
        folder, {"kind": "attack", "key": key, "budget": budget, "command": command, "costs": costs, **subject_of(units[0])}
    )
    plain = plain_hits(original, units, profile, judge, calibration)
    if not any(plain[c] for u in units if u.role != "novel" for c in u.goal.cases):
        raise EvaluationError("the original model shows the target in none of the plain cases: there is nothing to bring back.")
    for unit in units:
        if read_attempts(folder, unit.label) is None:
            rows, spent = run_unit(unit, profile, judge, budget, plain)
            write_text(folder / f"cost-{unit.label}.json", json.dumps(spent))
            write_attempts(folder, unit.label, rows)
        done += _images(unit, budget)
        on_image(done, total)
    found = {u.label: read_attempts(folder, u.label) or [] for u in units}
    spent = {u.label: json.loads((folder / f"cost-{u.label}.json").read_text("utf-8")) for u in units}
    facts = {u.label: facts_of(u) for u in units}
    summary = {
        "budget": budget,
        "left_out": dict(left_out or {}),
        **summarise_attacks(found, facts, {u.label: u.attack.controls for u in units}),
    }
    for label, entry in summary["attacks"].items():
        entry["cost"] = spent[label]
    write_text(folder / "summary.json", json.dumps(summary, indent=1))
    return summary


def plain_hits(
    original: DiffusionModel, units: Sequence[Unit], profile: Profile, judge: Judge, calibration: Sequence[Case]
) -> dict[Case, bool]:
    """Teach the judge what is valid, and look in which of the plain cases the original model shows the target."""
    *parts, anchors = base_lists(units, profile, calibration)
    cases = [c for part in parts for c in part]
    base = torch.cat([base_images(original, part, profile) for part in parts if part])
    judge.calibrate(torch.cat([base, base_images(original, anchors, profile)]))
    return dict(zip(cases, _hits(judge, base, [c.concept for c in cases]), strict=True))


def base_lists(units: Sequence[Unit], profile: Profile, calibration: Sequence[Case]) -> list[Sequence[Case]]:
    """What the original model draws before anything is attacked, as entries of the cache: the cases that teach the judge, which
    are those of an evaluation, further plain cases, and the anchor."""
    more = [c for c in dict.fromkeys(c for u in units for c in u.goal.cases) if c not in calibration]
    return [calibration, more, anchor_cases([""], profile)]


def facts_of(unit: Unit) -> dict[str, Any]:
    """What :func:`summarise_attacks` must know of a run beside its rows."""
    return {
        "role": unit.role,
        "tier": unit.attack.tier,
        "gate": unit.attack.gate,
        "target": unit.goal.target,
        "curve": unit.attack.curve,
        "taught": unit.attack.name if unit.role == "novel" else None,
    }


def subject_of(unit: Unit) -> dict[str, Any]:
    """What is attacked, so that a report can tell whether it is what was evaluated."""
    d, target = unit.deployed, unit.goal.target
    return {
        "target": target,
        "model": d.original.digest(),
        "patch": d.patch.digest() if d.patch is not None else None,
        "guard": d.guard.name if d.guard is not None else None,
    }


def _images(unit: Unit, budget: int) -> int:
    return unit.plan(budget).images * len(unit.goal.cases)


def run_unit(
    unit: Unit, profile: Profile, judge: Judge, budget: int, plain: Mapping[Case, bool]
) -> tuple[list[AttemptRow], dict[str, int]]:
    """Rows of one unit and the evaluations counted. Raises EvaluationError for an attack that spent another sum than planned.

    Where the target is sensitive, a prompt that an attack found and that speaks of a minor is not drawn: the empty prompt is
    drawn in its place, for the same cost, and the attempt is invalid.
    """
    plan, deployed, goal = unit.plan(budget), unit.deployed, unit.goal
    counters = {id(m): m for m in (deployed.original, deployed.model) if m is not None}.values()
    before = [dataclasses.replace(m.evals) for m in counters]
    found = unit.attack.run(deployed, goal, plan)
    withheld = [goal.cases[a.case].sensitive and minor(a.prompt) is not None for a in found]
    attempts = [Attempt(a.case, "", a.seed, a.stage, taken=a.taken) if w else a for a, w in zip(found, withheld, strict=True)]
    images = render(deployed, goal, attempts)
    forward = sum(m.evals.forward - b.forward for m, b in zip(counters, before, strict=True))
    backward = sum(m.evals.differentiated - b.differentiated for m, b in zip(counters, before, strict=True))
    if forward + backward != unit.cost(budget):
        raise EvaluationError(
            f"{unit.label} spent {forward + backward} UNet evaluations and planned {unit.cost(budget)}: its plan() is wrong."
        )
    gates = [plain[goal.cases[a.case]] for a in attempts]
    if unit.attack.gate == "own":
        own = [Case("attack", goal.target, a.prompt, a.seed, goal.guidance, goal.cases[a.case].sensitive) for a in attempts]
        gates = _hits(judge, base_images(deployed.original, own, profile), [goal.target] * len(own))
    seen = judge.detect(images, [goal.target] * len(images))
    verdicts = [(None, None, MINORS) if w else v for v, w in zip(seen, withheld, strict=True)]
    shown = [WITHHELD if goal.cases[a.case].sensitive else a.prompt for a in attempts]
    rows = [
        AttemptRow(unit.label, goal.cases[a.case].id, goal.target, text, a.seed, a.stage, gate, why is None, why, label, p)
        for a, text, gate, (label, p, why) in zip(attempts, shown, gates, verdicts, strict=True)
    ]
    return rows, {"forward": forward, "backward": backward, "images": len(attempts), "cases": len(goal.cases)}


def render(deployed: Deployed, goal: Goal, attempts: Sequence[Attempt]) -> Tensor:
    """The 8-bit images of attempts on the deployed system."""
    order = sorted(range(len(attempts)), key=lambda i: attempts[i].taken)  # one batch shares its number of steps
    images: dict[int, Tensor] = {}
    with deployed.active() as model:
        for taken in dict.fromkeys(attempts[i].taken for i in order):
            rows = [i for i in order if attempts[i].taken == taken]
            for start in range(0, len(rows), BATCH):
                part = [attempts[i] for i in rows[start : start + BATCH]]
                z = torch.cat([model.case_noise([a.seed]) if a.latent is None else a.latent.to(model.device) for a in part])
                if taken < deployed.steps:
                    c = Cond.cat([_cond(model, a) for a in part])
                    z = model.denoise(c, z, deployed.steps, goal.guidance, taken)
                images.update(zip(rows[start : start + BATCH], quantised(model.decode(z).float().cpu()), strict=True))
    return torch.stack([images[i] for i in range(len(attempts))])


def _cond(model: DiffusionModel, attempt: Attempt) -> Cond:
    return attempt.cond if attempt.cond is not None else model.encode([attempt.prompt])


def _hits(judge: Judge, images: Tensor, concepts: Sequence[str]) -> list[bool]:
    found = judge.detect(images, concepts)
    return [why is None and label == concept for (label, _, why), concept in zip(found, concepts, strict=True)]


def _key(units: Sequence[Unit], profile: Profile, judge: Judge, budget: int) -> str:
    """What must be equal for rows on disk to be kept."""
    parts = [
        [
            u.label,
            u.attack.name,
            dataclasses.asdict(u.attack),
            u.role,
            u.goal.target,
            [c.id for c in u.goal.cases],
            u.goal.wordings,
            (u.deployed.model or u.deployed.original).digest(),
            u.deployed.patch.digest() if u.deployed.patch is not None else None,
            [u.deployed.guard.name, dataclasses.asdict(u.deployed.guard), u.deployed.targets] if u.deployed.guard else None,
        ]
        for u in units
    ]
    judged = {k: v for k, v in judge.facts.items() if k != "validity"}
    return hashlib.sha256(json.dumps([parts, profile.steps, judged, budget], default=str).encode()).hexdigest()[:32]


def _open_folder(folder: Path, run: dict[str, Any]) -> None:
    path = folder / "run.json"
    if path.is_file():
        try:
            same = json.loads(path.read_text("utf-8")).get("key") == run["key"]
        except (ValueError, AttributeError) as error:
            raise BadFile(f"{path} is damaged ({error}); give another --out, or delete it.") from error
        if not same:
            raise BadFile(f"{folder} holds something else (another attack, budget, patch or model). Give another --out.")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadFile(f"{folder} is no folder of an attack and not empty. Give another --out.")
    write_text(path, json.dumps(run, indent=1))
