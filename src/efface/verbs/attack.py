"""Attack an erased model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..attacks import TIERS, Attack, Deployed, Direct, Goal
from ..attacks.base import Called
from ..concepts.prompts import Case
from ..concepts.request import OBJECT, EraseRequest, names_of, normalised
from ..concepts.sensitive import refuse_minors
from ..errors import BadOption, UnknownName
from ..evaluation.attack import Unit, base_lists, run_attacks
from ..evaluation.cache import base_cost
from ..evaluation.profiles import Profile
from ..evaluation.records import LISTED_AXES, read_attempts
from ..evaluation.suite import Asked, Suite
from ..guards import Guard
from ..io.files import claimed
from ..lists import PromptList
from ..models.base import DiffusionModel
from ..models.load import load_model
from ..patches import Patch
from ..registry import ATTACKS, build_attack, build_guard, preset_for
from .cost import announce
from .erase import AUTO
from .listed import Lists, lists_of, measured_alone, scored_whole, told_of, with_lists
from .subject import asked_of, gold_for, judge_for, known_to, profile_for, suite_for

ALL = "all"
"""In the place of an attack's name: every attack that is possible."""


def attack(
    model: Any,
    attack: Attack | str | Sequence[Attack | str],
    *,
    budget: int,
    target: str | None = None,
    kind: str = AUTO,
    patch: Patch | None = None,
    guard: Guard | str | None = None,
    out: str | Path | None = None,
    cases: int = 10,
    profile: str | Profile = "mini-lite",
    controls: bool = True,
    wordings: Mapping[str, Sequence[str]] | None = None,
    clip: str | None = None,
    detector: str | Sequence[str] | None = None,
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    prompts: Lists = (),
    sensitive: bool = False,
    on_image: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Attack an erased model and count the cases in which the target comes back; returns the summary.

    ``attack``: an instance, a name, several of them, or "all": every attack that this system and this budget allow, the cheapest
    first. Those that are left out are named in the summary, under ``left_out``, with the reason. With "all", attacks that search
    in the text encoder take their preset "quick" where others would take "paper": the budget does not count their passes, which
    take minutes on a CPU.
    ``budget``: UNet evaluations per case (forwards, backwards and images), of the attack and of each control alike. A system of
    neither patch nor guard is the model itself. ``target``: needed when there is no patch or it has several, and ``kind`` says of
    which kind it is. ``prompts``: published prompt lists (:func:`efface.load_prompts`), ``cases`` prompts of which are attacked
    in the place of those that name the target, spread evenly, with their own seeds and the profile's guidance scale;
    ``sensitive``: you mean a sensitive one. ``wordings``: family -> other words for the target, for models other than the
    miniature. ``out``: a folder for run.json, attempts and summary, which a stopped attack is continued in; without it nothing
    is kept. Beside the attack stand ``direct`` (the plain prompts) and, with ``controls``, the attack's controls at the same
    budget; for concept_inversion on the miniature also the same attack on the gold model with a concept it never saw. Raises
    UsageError for what cannot be run before anything is computed, EvaluationError where nothing true can be said.

    >>> import efface
    >>> patch = efface.erase("mini", "uce", targets="rabbit")
    >>> summary = efface.attack("mini", "seed_search", patch=patch, budget=64, cases=2, profile="smoke", controls=False)
    >>> rate = summary["attacks"]["seed_search"]["rate"]  # cases in which the target came back
    >>> rate["k"], rate["n"], round(rate["low"], 2), round(rate["high"], 2)  # with a 95 % interval
    (0, 2, 0.0, 0.66)

    """
    model = load_model(model)
    model.require("an attack", ("unrounded",))
    wanted = [attack] if isinstance(attack, (Attack, str)) else list(attack)
    everything = wanted == [ALL]
    names = list(ATTACKS) if everything else wanted
    built = [build_attack(a, preset=_preset(a, model, everything)) if isinstance(a, str) else a for a in names]
    guard = build_guard(guard) if isinstance(guard, str) else guard
    near, far = names_of(near, "near"), names_of(far, "far")
    words = {family: names_of(names, f"wordings[{family!r}]") for family, names in (wordings or {}).items()}
    target, request = one_target(model, patch, target, kind)
    lists, chosen = lists_of(prompts), profile_for(model, profile)
    suite = attacked_suite(model, target, near, far, request.kind, known_to(detector, clip), lists, chosen, allowed=sensitive)
    refuse_minors((w for given in words.values() for w in given), "the wordings", all_sensitive=suite.sensitive)
    judge = judge_for(model, suite.names, clip, detector, suite.heads)
    if lists:
        suite = scored_whole(suite, judge)
        told_of(lists, suite, note)
    system = (target, request.targets, patch, guard, cases, profile, words, near, far)
    left_out: dict[str, str] = {}
    if everything:
        beside = {"direct", *(name for a in built for name in a.controls)}  # runs of other attacks, and no attacks of their own
        tried = [a for a in built if a.name not in beside]
        tried_units = attack_units(model, tried, *system, controls=False, kind=request.kind, suite=suite)
        built, left_out = _possible(tried_units, budget)
    units = attack_units(model, built, *system, controls=controls, kind=request.kind, suite=suite)
    done = [u.label for u in units if out is not None and read_attempts(Path(out), u.label) is not None]
    calibration = [c for c in suite.cases(chosen) if c.axis not in LISTED_AXES]
    base = base_cost(model, base_lists(units, chosen, calibration), chosen)
    left = [u for u in units if u.label not in done]
    gates = sum(u.gate_cost(budget, chosen) for u in left)
    told = _told(model, built, units, len(done))
    if base:
        told += f". The unmodified model first draws {base // chosen.evals_per_image(model)} images, which say what is valid"
    announce(note, model, sum(u.cost(budget) for u in left) + base + gates, told, at_most=gates > 0)
    folder = Path(out) if out is not None else None
    with tempfile.TemporaryDirectory() as nowhere, claimed(folder or Path(nowhere)):
        return run_attacks(
            units,
            chosen,
            judge,
            folder or Path(nowhere),
            budget,
            calibration=calibration,
            left_out=left_out,
            on_image=on_image,
            command=command,
        )


def _preset(name: str, model: DiffusionModel, everything: bool) -> str:
    cls = ATTACKS.find(name)
    preset = preset_for(cls, model)
    return "quick" if everything and preset == "paper" and "quick" in cls.presets else preset


def _told(model: DiffusionModel, attacks: Sequence[Attack], units: Sequence[Unit], finished: int) -> str:
    """What is about to be run, as the beginning of an announcement."""
    beside = len(units) - len(attacks)
    others = f", and {beside} other run{'s' * (beside > 1)} beside {'it' if len(attacks) == 1 else 'them'}" if beside else ""
    kept = f" ({finished} of them finished before)" if finished else ""
    cases = f"{len(units[0].goal.cases)} cases each"
    if len(attacks) == 1:
        return f"Attacking {model.name} with {attacks[0].name}{others}{kept}, {cases}; the attacker has {TIERS[attacks[0].tier]}"
    return f"Attacking {model.name} with {len(attacks)} attacks ({', '.join(a.name for a in attacks)}){others}{kept}, {cases}"


def _possible(units: Sequence[Unit], budget: int) -> tuple[list[Attack], dict[str, str]]:
    """The attacks among these runs that can be planned, the cheapest first, and why the others cannot.

    Raises BadOption where none can.
    """
    possible, left_out = [], {}
    for unit in units:
        if unit.role == "baseline":
            continue
        try:
            possible.append((unit.cost(budget), unit.attack))
        except BadOption as error:
            left_out[unit.label] = str(error)
    if not possible:
        raise BadOption(f"no attack can be made: {'; '.join(left_out.values())}")
    return [attack for _, attack in sorted(possible, key=lambda pair: pair[0])], left_out


def attacked_suite(
    model: DiffusionModel,
    target: str,
    near: Sequence[str],
    far: Sequence[str],
    kind: str,
    known: Callable[[Sequence[str]], Sequence[str]],
    lists: Sequence[PromptList],
    profile: Profile,
    *,
    allowed: bool,
) -> Suite:
    """The suite of an attacked target with the prompts of the lists; for a model without a world and without names to keep, the
    target and the lists alone."""
    if measured_alone(lists, model, near, far, kind):
        suite = Suite((target,), (), (), (), {}, {})
    else:
        suite = suite_for(model, [target], near, far, kind=kind, known=known)
    suite = replace(suite, hidden=suite.hidden or allowed)
    return with_lists(suite, lists, model, profile.guidance, allowed=allowed) if lists else suite


def one_target(model: DiffusionModel, patch: Patch | None, target: str | None, kind: str = AUTO) -> tuple[str, EraseRequest]:
    """The attacked target, and the request, whose texts the guard acts against."""
    request = asked_of(model, patch, [target] if target is not None and patch is None else [], kind)
    mine = request.asked
    if patch is None:
        return mine[0], request
    if target is None and len(mine) > 1:
        raise BadOption(f"the patch erases {', '.join(mine)}; say which is attacked with --target.")
    named = mine[0] if target is None else next((n for n in mine if normalised(n) == normalised(target)), "")
    if not named:
        raise UnknownName("target of the patch", str(target), mine)
    return named, request


def attack_units(
    model: DiffusionModel,
    attacks: Sequence[Attack],
    target: str,
    targets: tuple[str, ...],
    patch: Patch | None,
    guard: Guard | None,
    cases: int,
    profile: str | Profile,
    wordings: Mapping[str, Sequence[str]] | None = None,
    near: Sequence[str] = (),
    far: Sequence[str] = (),
    *,
    controls: bool = True,
    deployed: DiffusionModel | None = None,
    kind: str = OBJECT,
    suite: Suite | None = None,
) -> list[Unit]:
    """The runs that belong to attacks on one system: ``direct``, the attacks, and each control once.

    ``deployed``: another model in the place of the patched one, such as the gold model. ``suite``: what is attacked, in the
    place of the model's own suite of the target; where it has prompts of a list for the target, these are the cases.
    """
    chosen = profile_for(model, profile)
    suite = suite_for(model, [target], near, far, kind=kind) if suite is None else suite
    direct = [c for c in suite.cases(chosen) if c.axis == ("listed" if suite.listed else "direct")]
    if not 1 <= cases <= len(direct):
        whose = "the list has" if suite.listed else f"profile {chosen.name} has"
        raise BadOption(f"{whose} {len(direct)} cases of the target, {cases} were asked for.")
    if suite.listed:  # an attack has one guidance scale
        direct = [replace(direct[i * len(direct) // cases], guidance=chosen.guidance) for i in range(cases)]
    given = {k: names_of(v, "wordings") for k, v in (wordings or {}).items()}
    system = Deployed(model, chosen.steps, targets, patch, guard, deployed)
    goal = goal_of(model, suite, direct[:cases], given)
    units = [Unit("direct", Direct(), system, goal, "baseline")]
    units += [Unit(a.name, a, system, goal, "attack" if a.in_union else "apart") for a in attacks if a.name != "direct"]
    for a in attacks:
        for name in a.controls if controls else ():
            if name not in {u.label for u in units}:
                preset = preset_for(ATTACKS.find(name), model)
                control = build_attack(name, preset=preset, settings={"seed": a.seed})
                units.append(Unit(name, control, system, goal, "control"))
    novel = [a for a in attacks if a.teaches]
    gold = gold_for(model) if novel and controls and deployed is None else None
    if gold is not None and model.world is not None:
        unseen = model.world.unseen_like(target)
        novel_suite = suite_for(model, [unseen])
        plain = [c for c in novel_suite.cases(chosen) if c.axis == "direct"][:cases]
        taught = Deployed(model, chosen.steps, (), model=gold)
        for a in novel:
            label = "never_learned" if a.name == "concept_inversion" else f"{a.name}_never_learned"
            units.append(Unit(label, a, taught, goal_of(model, novel_suite, plain, given), "novel"))
    return units


def goal_of(model: DiffusionModel, suite: Suite, cases: Sequence[Case], given: Mapping[str, tuple[str, ...]]) -> Goal:
    """What to bring back in these cases, with the words that the model's world knows for what each of them names, and those that
    are given."""
    target = suite.targets[0]
    word = suite.words.get(target, target)
    asked = {a.prompt: a for a in suite.asked()}
    known = model.world.wordings if model.world is not None else lambda name: {}
    named = [asked.get(c.prompt) or Asked(target, c.prompt, word, target) for c in cases]
    called = tuple(Called(a.word, a.phrase, {**known(a.word), **given}) for a in named)
    return Goal(target, tuple(cases), {**known(target), **given}, called)
