"""From a plan to its cells: every model, target, training seed, entrant and attack, checked before anything is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..concepts.prompts import Case
from ..concepts.request import EraseRequest, normalised
from ..errors import BadOption
from ..evaluation.attack import Unit
from ..evaluation.cache import base_cost
from ..evaluation.driver import Judge, anchor_cases, judge_facts
from ..evaluation.profiles import Profile
from ..evaluation.suite import Suite
from ..guards import Guard
from ..io.files import file_digest
from ..methods import Method
from ..models.base import DiffusionModel
from ..models.load import load_model
from ..options import Settings
from ..patches import Patch
from ..plans.cells import Cell, Place, unique
from ..plans.plan import BASE, AttackPlan, EntrantPlan, Plan
from ..plugins import Plugins
from ..registry import ATTACKS, GUARDS, METHODS, build_attack, build_guard, build_method, preset_for
from .attack import attack_units
from .erase import request_for
from .hub import load_patch
from .listed import list_beside, scored_whole, with_lists
from .subject import gold_for, judge_for, known_to, named_suite, profile_for, suite_for, with_world


@dataclass(frozen=True)
class Subject:
    """One model and one set of targets of a plan: what is drawn and who looks at it."""

    model: DiffusionModel
    targets: tuple[str, ...]
    profile: Profile
    suite: Suite
    judge: Judge
    digest: str
    """Of the model, asked for once: looking whether it still holds takes longer than all the rest of planning."""
    texts: tuple[str, ...]
    """What methods erase and guards hold back: the targets, or the members of a category."""
    kind: str
    """What the targets are; see :data:`efface.concepts.request.KINDS`."""

    def cases(self, plan: Plan, strength: float) -> list[Case]:
        """The cases of an evaluation; fewer at strengths other than 1, and among those of strength 1."""
        profile = self.profile if strength == 1 else replace(self.profile, cases=dict(plan.curve.cases))
        return self.suite.cases(profile)


@lru_cache(maxsize=2)
def loaded(source: str, dtype: str, device: str, encoders: str, world: str) -> DiffusionModel:
    """A model of the plan; the last two are kept, because the next cell usually wants one of them."""
    return with_world(load_model(source, dtype=dtype, device=device, encoders=encoders), world or None)


@lru_cache(maxsize=2)
def _judge(model: DiffusionModel, names: tuple[str, ...], clip: str, detector: str, heads: tuple[tuple[str, ...], ...]) -> Judge:
    return judge_for(model, names, clip or None, detector or None, heads)


def subject_of(plan: Plan, source: str, targets: Sequence[str]) -> Subject:
    """Raises UsageError for what cannot be measured."""
    model = loaded(source, *plan.loading)
    request = request_for(model, targets)
    named = request.asked
    suite = _suite(plan, model, named, request.kind)
    suite = replace(suite, hidden=suite.hidden or plan.sensitive)
    profile = profile_for(model, plan.profile.name) if plan.named_profile else plan.profile
    profile = replace(profile, cases=plan.profile.cases)
    if lists := [list_beside(Path(plan.folder), source) for source in plan.prompts]:
        suite = with_lists(suite, lists, model, profile.guidance, allowed=plan.sensitive, rows=plan.rows or None)
    judge = _judge(model, suite.names, plan.clip, plan.detector, suite.heads)
    suite = scored_whole(suite, judge) if lists else suite
    return Subject(model, named, profile, suite, judge, model.digest(), request.targets, request.kind)


def _suite(plan: Plan, model: DiffusionModel, targets: Sequence[str], kind: str) -> Suite:
    """What the plan looks at for these targets."""
    if plan.suite:
        return named_suite(model, plan.suite, targets)
    words, known = {t: w for t, w in plan.synonyms.items() if t in targets}, known_to(plan.detector, plan.clip or None)
    return suite_for(model, targets, plan.near, plan.far, words, kind, known)


def method_of(plan: Plan, entrant: EntrantPlan, model: DiffusionModel, seed: int) -> Method:
    """The entrant's method with its options and, where it draws at random, the training seed."""
    cls = METHODS.find(entrant.method)
    settings = {**entrant.options, **({"seed": seed} if seeded(cls) else {})}
    return build_method(entrant.method, preset=entrant.preset or preset_for(cls, model), settings=settings)


def request_of(entrant: EntrantPlan, model: DiffusionModel, targets: Sequence[str]) -> EraseRequest:
    kept = next((entrant.preserve[t] for t in targets if t in entrant.preserve), entrant.preserve.get("", ()))
    return request_for(model, targets, entrant.anchor, kept)


def seeded(cls: type[Settings]) -> bool:
    """Whether training draws at random: a method without that option has one result for all seeds."""
    return "seed" in cls.__dataclass_fields__


def patch_path(plan: Plan, entrant: EntrantPlan) -> str:
    """The entrant's patch: a file beside the plan, or as it is written (a file elsewhere, OWNER/NAME)."""
    beside = Path(plan.folder) / entrant.patch
    return str(beside) if beside.is_file() else entrant.patch


def units_of(
    plan: Plan, subject: Subject, attack: AttackPlan, target: str, seed: int, patch: Patch | None, guard: Guard | None, gold: bool
) -> list[Unit]:
    """The runs that belong to one attack of the plan: the plain prompts, the attack under its label, its controls, and the same
    on what was never learned."""
    preset = attack.preset or preset_for(ATTACKS.find(attack.attack), subject.model)
    built = build_attack(attack.attack, preset=preset, settings={"seed": seed, **attack.options})
    units = attack_units(
        subject.model,
        [built],
        target,
        subject.texts,
        patch,
        guard,
        attack.cases,
        subject.profile,
        near=plan.near,
        far=plan.far,
        controls=attack.controls,
        deployed=gold_of(subject.model)[0] if gold else None,
        kind=subject.kind,
    )
    usual = {a.budget for a in plan.attacks}
    suffix = f"@{attack.budget}" if len(usual) > 1 else ""

    def label(unit: Unit) -> str:
        if unit.role == "control":
            return unit.label + suffix
        if unit.role == "novel":
            return unit.label if attack.label == built.name else f"{attack.label}_never_learned"
        return unit.label if unit.role == "baseline" else attack.label

    return [replace(u, label=label(u)) for u in units]


# -- expanding ---------------------------------------------------------------------------------------------------------


@dataclass
class Expanded:
    """A plan as cells, with what is left out and why, and the evaluations counted."""

    plan: Plan
    cells: list[Cell] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)


def expand(plan: Plan) -> Expanded:
    """Every cell of a plan. Raises UsageError for anything in it that cannot be run."""
    found, cells = Expanded(plan), list[Cell]()
    for source in plan.models:
        model = loaded(source, *plan.loading)
        found.models[source] = {**model.info, "digest": model.digest()}
        subjects = [subject_of(plan, source, targets) for targets in plan.targets]
        for seed in plan.seeds:
            for subject in subjects:
                for entrant in plan.entrants:
                    cells += _Expansion(found, subject, source, entrant, seed).cells()
    found.cells = unique(cells)
    tried = {p.attack for p in found.places if p.role in ("attack", "apart", "baseline")}
    for attack in plan.attacks:
        if attack.label not in tried:
            why = next(row["why"] for row in found.left_out if row["what"] == attack.label)
            raise BadOption(f"the attack {attack.label} can be made against no entrant of the plan: {why}")
    return found


@dataclass
class _Expansion:
    """The cells of one entrant, one set of targets and one training seed."""

    found: Expanded
    subject: Subject
    source: str
    entrant: EntrantPlan
    seed: int

    def cells(self) -> list[Cell]:
        plan, e, model = self.found.plan, self.entrant, self.subject.model
        method = method_of(plan, e, model, self.seed) if e.method else None
        counted = e.seeds or (len(plan.seeds) if method is not None and seeded(type(method)) else 1)
        if self.seed not in plan.seeds[:counted]:
            return []
        self.guard = build_guard(e.guard) if e.guard else None
        made: list[Cell] = []
        self.patch: Patch | None = None
        self.system: dict[str, Any] = {}
        if e.gold and self._no_gold():
            return []
        if method is not None:
            method.check(model)
            made.append(self._erase(e, method))
            self.system = {"patch": made[0].key}
            request = request_of(e, model, self.subject.targets)
            self.patch = Patch({}, method.card(model, request, model.evals.snapshot()))  # in the place of the one to come
        elif e.patch:
            self.patch = load_patch(patch_path(plan, e))
            if {*map(normalised, self.patch.card.request.asked)} != {*map(normalised, self.subject.targets)}:
                self._leave_out("", f"the patch erases {', '.join(self.patch.card.request.asked)}")
                return []
            self.patch.check_base(model)
            self.system = {"patch file": self.patch.digest()}
        elif e.gold:
            self.system = {"gold": gold_of(model)[1]}
        else:
            self.system = {"trivial": e.trivial} if e.trivial else {}
        if e.trivial == "noise":
            other = next(o for o in plan.entrants if o.label == e.of)
            if other.method:
                made.append(self._erase(other, method_of(plan, other, model, plan.seeds[0])))
                self.system["of"] = made[0].key
            else:
                self.system["of file"] = load_patch(patch_path(plan, other)).digest()
        if self.guard is not None:
            self.system["guard"] = [self.guard.name, code_of(GUARDS, e.guard), self.guard.plain(), list(self.subject.texts)]
        needs = tuple(c.key for c in made)
        strengths = (1.0, *(plan.curve.strengths if e.curve else ()))
        made += [self._evaluate(s, needs) for s in strengths]
        if not e.trivial or e.trivial == BASE:
            for target in self.subject.targets:
                for attack in plan.attacks:
                    made += self._attack(attack, target, needs)
        return made

    def _no_gold(self) -> bool:
        model, targets = self.subject.model, self.subject.targets
        why = ""
        if gold_of(model)[0] is None or model.world is None:
            why = f"{model.name} has no gold model"
        elif not set(targets) <= set(model.world.unseen):
            why = "the gold model knows this target"
        if why:
            self._leave_out("", why)
        return bool(why)

    def _leave_out(self, what: str, why: str) -> None:
        row = {"entrant": self.entrant.label, "model": self.source, "target": ", ".join(self.subject.targets)}
        row |= {"what": what, "why": why}
        if row not in self.found.left_out:
            self.found.left_out.append(row)

    def _how(self, told: str, entrant: EntrantPlan | None = None, **more: Any) -> dict[str, Any]:
        facts = {"plan": self.found.plan, "model": self.source, "targets": self.subject.targets}
        e = entrant or self.entrant
        return {**facts, "entrant": e, "seed": self.seed, "told": f"{e.label}, {told}, seed {self.seed}", **more}

    def _place(self, cell: Cell, target: str, entrant: str = "", **more: Any) -> None:
        label = entrant or self.entrant.label
        self.found.places.append(Place(cell.key, cell.kind, label, self.source, self.subject.targets, target, self.seed, **more))

    def _erase(self, entrant: EntrantPlan, method: Method) -> Cell:
        request = request_of(entrant, self.subject.model, self.subject.targets)
        inputs = {
            **self._base(),
            "method": method.name,
            "code": code_of(METHODS, entrant.method),
            "options": method.plain(),
            "files": _files(method),
            "request": request.json(),
        }
        target = ", ".join(self.subject.targets)
        evals = method.expected_evals(self.subject.model, request)
        cell = Cell("erase", inputs, self._how(target, entrant), (), evals)
        if entrant is self.entrant:
            self._place(cell, target)
        return cell

    def _base(self) -> dict[str, Any]:
        return {"model": self.subject.digest, "dtype": self.found.plan.dtype}

    def _measured(self, cases: Sequence[Case]) -> dict[str, Any]:
        return {
            **self._base(),
            "system": self.system,
            "targets": list(self.subject.targets),
            "steps": self.subject.profile.steps,
            "cases": [c.id for c in cases],
            "judge": _sha(judge_facts(self.subject.judge)),
        }

    def _none(self) -> str:
        """The key of the unmodified model's evaluation, which draws the images that all others are compared with."""
        cases = self.subject.cases(self.found.plan, 1.0)
        return Cell("evaluate", {**self._measured(cases), "system": {"trivial": BASE}}, {}).key

    def _evaluate(self, strength: float, needs: tuple[str, ...]) -> Cell:
        plan, model, profile = self.found.plan, self.subject.model, self.subject.profile
        cases = self.subject.cases(plan, strength)
        is_base = self.entrant.trivial == BASE
        inputs = self._measured(cases)
        if strength != 1:
            inputs["system"] = {**self.system, "strength": strength}
        each = profile.steps * self.guard.branches if self.guard is not None else profile.evals_per_image(model)
        evals = base_cost(model, [cases, anchor_cases([""], profile)], profile) if is_base else each * len(cases)
        told = ", ".join(self.subject.targets) + (f", strength {strength:g}" if strength != 1 else "")
        needed = needs if is_base else (self._none(), *needs)
        cell = Cell("evaluate", inputs, self._how(told, strength=strength), needed, float(evals))
        self._place(cell, ", ".join(self.subject.targets), strength=strength)
        return cell

    def _attack(self, attack: AttackPlan, target: str, needs: tuple[str, ...]) -> list[Cell]:
        plan, subject, e = self.found.plan, self.subject, self.entrant
        made = []
        units = units_of(plan, subject, attack, target, self.seed, self.patch, self.guard, e.gold)
        own = next((u for u in units if u.label == attack.label), units[0])
        try:
            own.cost(attack.budget)
        except BadOption as error:
            self._leave_out(attack.label, str(error))
            return []
        for unit in units:
            if unit.role == "novel" and e.label != BASE:
                continue  # it does not depend on the defence: once, beside the unmodified model
            novel = unit.role == "novel"
            inputs = {
                **self._measured(unit.goal.cases),
                "calibration": _sha([c.id for c in self._calibration(target)]),
                "attack": [unit.attack.name, code_of(ATTACKS, _name_of(unit, attack)), unit.attack.plain()],
                "files": _files(unit.attack),
                "budget": 0 if unit.role == "baseline" else attack.budget,
                "target": unit.goal.target,
                "called": [asdict(c) for c in unit.goal.called],
            }
            if novel:
                inputs["system"] = {"gold": gold_of(subject.model)[1], "novel": True}
            how = self._how(f"{target}, {unit.label}", attack=attack, target=target, unit=unit.label)
            needed = () if novel else needs
            evals = unit.cost(max(attack.budget, unit.deployed.per_image(unit.goal.guidance)))
            evals += unit.gate_cost(attack.budget, subject.profile)
            cell = Cell("attack", inputs, how, (self._none(), *needed), float(evals))
            self._place(cell, target, attack=unit.label, role=unit.role)
            made.append(cell)
        return made

    def _calibration(self, target: str) -> list[Case]:
        return suite_of(self.found.plan, self.subject, target).cases(self.subject.profile)


def suite_of(plan: Plan, subject: Subject, target: str) -> Suite:
    """The suite of one target of a set, whose base images teach the judge of an attack what is valid."""
    return subject.suite if (target,) == subject.targets else _suite(plan, subject.model, [target], subject.kind)


def _name_of(unit: Unit, attack: AttackPlan) -> str:
    return attack.attack if unit.role in ("attack", "apart", "novel") else unit.attack.name


@lru_cache(maxsize=2)
def gold_of(model: DiffusionModel) -> tuple[DiffusionModel | None, str]:
    """The gold model, where there is one, and its digest."""
    gold = gold_for(model)
    return gold, gold.digest() if gold is not None else ""


def code_of(table: Plugins[Any], name: str) -> str:
    """What tells the code behind a name apart from another version of it: the hash of a file of the user's own, the version of
    another package; of efface itself nothing, whose record format stands for it."""
    from importlib import metadata

    file = name.partition(".py:")[0] + ".py" if ".py:" in name else ""
    if file:
        return file_digest(Path(file))
    owner = table.points.get(name.partition(":")[0], ("", "efface"))[1]
    return "" if owner == "efface" else f"{owner} {metadata.version(owner)}"


def _files(settings: Settings) -> dict[str, str]:
    """The contents, by sha256, of options that name a file."""
    values = {k: v for k, v in settings.plain().items() if isinstance(v, str) and v and len(v) < 4096}
    return {k: file_digest(Path(v)) for k, v in values.items() if Path(v).is_file()}


def _sha(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
