"""A plan: which erasures are made, measured and attacked, as data. Read from a TOML file.

A plan names models, targets, training seeds, a profile, entrants and attacks; every combination of them is a cell. docs/bench.md
explains every key with an example.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..concepts.request import names_of
from ..errors import BadFile, BadOption, UnknownName
from ..evaluation.profiles import Profile, profile
from ..evaluation.records import AXES, LISTED_AXES

TRIVIAL = ("none", "noise", "blocklist")
BASE = "none"
"""The entrant that every plan has: the unmodified model."""
KINDS = ("method", "patch", "guard", "gold", "trivial")


@dataclass(frozen=True)
class EntrantPlan:
    """One row of the tables that are made of a plan: a method, a patch file or nothing, each with a guard or without; the gold
    model; or a trivial entrant."""

    label: str
    method: str = ""
    preset: str = ""
    """Empty: the one that fits the model."""
    options: Mapping[str, Any] = field(default_factory=dict)
    anchor: str = ""
    preserve: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Target -> what is preserved; the key "" is for every target that has none of its own."""
    seeds: int = 0
    """For how many training seeds it is run; 0 for all."""
    curve: bool = False
    """Whether it is also evaluated at the strengths of the plan."""
    patch: str = ""
    guard: str = ""
    gold: bool = False
    trivial: str = ""
    of: str = ""
    """Of noise: the entrant whose patch it has the size of."""


@dataclass(frozen=True)
class AttackPlan:
    """One attack of a plan, made against every entrant that it is possible against."""

    label: str
    attack: str
    preset: str
    options: Mapping[str, Any]
    budget: int
    """UNet evaluations per case, of the attack and of each of its controls."""
    cases: int
    controls: bool


@dataclass(frozen=True)
class Curve:
    """The strengths at which entrants with ``curve = true`` are evaluated beside 1, and on how many cases per axis."""

    strengths: tuple[float, ...] = ()
    cases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a file says, checked as far as that is possible without a model."""

    name: str
    models: tuple[str, ...]
    targets: tuple[tuple[str, ...], ...]
    """Each is one concept or several that are erased at once."""
    seeds: tuple[int, ...]
    profile: Profile
    named_profile: bool
    """Whether the profile is one of efface's own, whose steps and guidance follow the model."""
    entrants: tuple[EntrantPlan, ...]
    attacks: tuple[AttackPlan, ...] = ()
    curve: Curve = Curve()
    suite: str = ""
    world: str = ""
    clip: str = ""
    detector: str = ""
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    """Published prompt lists, by their sources; see :func:`efface.load_prompts`."""
    rows: int = 0
    """At most so many prompts of each list; 0 for all."""
    sensitive: bool = False
    """Whether the user said that a sensitive list or target is meant."""
    device: str = "auto"
    encoders: str = "device"
    """Where text encoders and VAE lie; see :meth:`DiffusionModel.place`."""
    dtype: str = "float32"
    folder: str = "."
    """Where the file lies: paths in it start there."""

    @property
    def loading(self) -> tuple[str, str, str, str]:
        """How its models are loaded."""
        return self.dtype, self.device, self.encoders, self.world

    def digest(self) -> str:
        """sha256 of what the plan says, wherever it lies and is computed."""
        facts = {k: v for k, v in asdict(self).items() if k not in WHERE and (v or k not in LATER)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


WHERE = ("folder", "device", "encoders")
"""Fields that no result depends on but by rounding."""
LATER = ("prompts", "rows", "sensitive")
"""Fields that came later: a plan without them is the plan that it was."""
KEYS: tuple[str, ...] = (
    "name",
    "models",
    "targets",
    "seeds",
    "profile",
    "entrants",
    "attacks",
    "attack_budget",
    "attack_cases",
    "curve",
)
KEYS += (*LATER, "suite", "world", "clip", "detector", "near", "far", "synonyms", "device", "encoders", "dtype")
ENTRANT_KEYS = ("method", "preset", "options", "anchor", "preserve", "seeds", "curve", "patch", "guard", "gold", "trivial", "of")
ATTACK_KEYS = ("attack", "preset", "options", "budget", "cases", "controls")


def read_plan(path: str | Path) -> Plan:
    """The plan in a TOML file. Raises BadFile for a file that cannot be read, UnknownName for a key that plans do not have, and
    BadOption for a value that its key does not take."""
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadFile(f"cannot read the plan {str(path)!r}: {error}.") from error
    return plan_of(raw, path.stem, str(path.parent))


def plan_of(raw: Mapping[str, Any], name: str, folder: str = ".") -> Plan:
    """As :func:`read_plan`, of what the file holds."""
    _known(raw, KEYS, "key of a plan")
    chosen, named = _profile(raw.get("profile", "mini-lite"))
    entrants = _entrants(_table(raw, "entrants"))
    budget, cases = _whole(raw, "attack_budget", 300), _whole(raw, "attack_cases", 10)
    attacks = tuple(_attack(label, entry, budget, cases) for label, entry in _table(raw, "attacks").items())
    curve = _curve(raw.get("curve", {}), chosen)
    curved = [e.label for e in entrants if e.curve]
    if bool(curved) != bool(curve.strengths):
        told = (
            f"{curved[0]} has curve = true and [curve] no strengths"
            if curved
            else "[curve] is there and no entrant has curve = true"
        )
        raise BadOption(f"the plan contradicts itself: {told}.")
    given = raw.get("targets", ())
    targets = tuple(names_of(t, "targets") for t in ([given] if isinstance(given, str) else given))
    if not targets:
        raise BadOption('the plan names no target; write targets = ["dog"], or ["dog", ["cat", "horse"]] for two sets.')
    if len({frozenset(t) for t in targets}) < len(targets):
        raise BadOption("the plan has one set of targets twice.")
    seeds = raw.get("seeds", [0])
    if (
        not isinstance(seeds, list)
        or not seeds
        or not all(type(s) is int and s >= 0 for s in seeds)
        or len({*seeds}) < len(seeds)
    ):
        raise BadOption(f"seeds = {seeds!r} of the plan: give different whole numbers from 0, such as [0, 1, 2].")
    prompts, rows = names_of(raw.get("prompts", ()), "prompts"), _whole(raw, "rows", 0, least=0)
    if rows and not prompts:
        raise BadOption('rows of the plan counts the prompts of a list; name one, such as prompts = ["file:list.csv"].')
    preserved = {t for e in entrants for t in e.preserve if t}
    if strange := preserved - {t for group in targets for t in group}:
        raise BadOption(f"preserve is given for {min(strange)!r}, which is no target of the plan.")
    return Plan(
        name=_text(raw, "name") or name,
        models=names_of(raw.get("models", ("mini",)), "models"),
        targets=targets,
        seeds=tuple(seeds),
        profile=chosen,
        named_profile=named,
        entrants=entrants,
        attacks=attacks,
        curve=curve,
        **{key: _text(raw, key) for key in ("suite", "world", "clip", "detector")},
        near=names_of(raw.get("near", ()), "near"),
        far=names_of(raw.get("far", ()), "far"),
        prompts=prompts,
        rows=rows,
        sensitive=_flag(raw, "sensitive", False),
        device=_text(raw, "device") or "auto",
        encoders=_text(raw, "encoders") or "device",
        dtype=_text(raw, "dtype") or "float32",
        synonyms={t: names_of(w, "synonyms") for t, w in _table(raw, "synonyms").items()},
        folder=folder,
    )


def _entrants(table: Mapping[str, Any]) -> tuple[EntrantPlan, ...]:
    found = tuple(_entrant(label, entry) for label, entry in table.items())
    labels = [e.label for e in found]
    if not [e for e in found if e.label != BASE]:
        raise BadOption('the plan has no entrant; write one, such as [entrants.uce] with method = "uce".')
    for e in found:
        if e.trivial == "noise":
            (made := [o for o in found if o.label == e.of and (o.method or o.patch)])
            if not made:
                raise BadOption(
                    f'{e.label}: noise has the size of a patch; say of which entrant with of = "LABEL", got {e.of!r}.'
                )
    return found if BASE in labels else (EntrantPlan(BASE, trivial=BASE), *found)


def _entrant(label: str, raw: Any) -> EntrantPlan:
    where = f"[entrants.{label}]"
    if not isinstance(raw, Mapping):
        raise BadOption(f"{where} must be a table.")
    _known(raw, ENTRANT_KEYS, f"key of {where}")
    kinds = [k for k in KINDS if raw.get(k)]
    system = [k for k in kinds if k != "guard"]
    if not kinds and label == BASE:
        kinds, raw = ["trivial"], {"trivial": BASE}
    if not kinds or len(system) > 1 or ("guard" in kinds and system and system[0] not in ("method", "patch")):
        raise BadOption(f"{where} must have one of {', '.join(KINDS)}; a guard may stand on a method or a patch.")
    if (label == BASE) != (raw.get("trivial") == BASE):
        raise BadOption(f"{where}: the name none is for the unmodified model and for nothing else.")
    trivial = _text(raw, "trivial")
    if trivial and trivial not in TRIVIAL:
        raise UnknownName("trivial entrant", trivial, TRIVIAL)
    allowed = {"method": ENTRANT_KEYS[:7], "patch": ("seeds", "curve")}.get(system[0] if system else "guard", ())
    idle = [k for k in raw if k not in (*KINDS, *allowed) and not (k == "of" and trivial == "noise")]
    if idle:
        raise BadOption(f"{where}: {idle[0]} has no effect beside {kinds[0]}; leave it out.")
    preserve = raw.get("preserve", ())
    by_target = preserve if isinstance(preserve, Mapping) else {"": preserve} if preserve else {}
    return EntrantPlan(
        label,
        method=_text(raw, "method"),
        preset=_text(raw, "preset"),
        options=_options(raw.get("options", {}), where),
        anchor=_text(raw, "anchor"),
        preserve={t: names_of(names, "preserve") for t, names in by_target.items()},
        seeds=_whole(raw, "seeds", 0, least=0),
        curve=_flag(raw, "curve", False),
        patch=_text(raw, "patch"),
        guard=_text(raw, "guard"),
        gold=_flag(raw, "gold", False),
        trivial=trivial,
        of=_text(raw, "of"),
    )


def _attack(label: str, raw: Any, budget: int, cases: int) -> AttackPlan:
    where = f"[attacks.{label}]"
    if not isinstance(raw, Mapping):
        raise BadOption(f"{where} must be a table; it may be empty.")
    _known(raw, ATTACK_KEYS, f"key of {where}")
    return AttackPlan(
        label,
        _text(raw, "attack") or label,
        _text(raw, "preset"),
        _options(raw.get("options", {}), where),
        _whole(raw, "budget", budget),
        _whole(raw, "cases", cases),
        _flag(raw, "controls", True),
    )


def _profile(raw: Any) -> tuple[Profile, bool]:
    if isinstance(raw, str):
        return profile(raw), True
    if not isinstance(raw, Mapping):
        raise BadOption("profile of the plan must be a name, or a table [profile] with steps, guidance and cases.")
    _known(raw, ("name", "steps", "guidance", "cases"), "key of [profile]")
    steps, cases, guidance = raw.get("steps"), raw.get("cases"), raw.get("guidance")
    if steps is None or cases is None or guidance is None:
        raise BadOption("[profile] needs steps, guidance and cases, such as cases = {direct = 16, near = 24, far = 16}.")
    if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not guidance >= 0:
        raise BadOption(f"guidance = {guidance!r} of [profile] is no number from 0.")
    return Profile(_text(raw, "name") or "plan", _whole(raw, "steps", 1), float(guidance), _cases(cases)), False


def _cases(raw: Any) -> dict[str, int]:
    if not isinstance(raw, Mapping) or not raw:
        raise BadOption("cases must be a table of numbers by axis, such as {direct = 16, near = 24}.")
    _known(raw, tuple(a for a in AXES if a not in LISTED_AXES), "axis")
    return {axis: _whole(raw, axis, 1) for axis in raw}


def _curve(raw: Any, whole: Profile) -> Curve:
    if not isinstance(raw, Mapping):
        raise BadOption("curve must be a table [curve] with strengths and cases.")
    _known(raw, ("strengths", "cases"), "key of [curve]")
    if not raw:
        return Curve()
    strengths = raw.get("strengths", ())
    if not strengths or not all(isinstance(s, int | float) and not isinstance(s, bool) and s > 0 and s != 1 for s in strengths):
        raise BadOption("[curve] strengths are numbers above 0 other than 1, at which every entrant is measured anyway.")
    cases = _cases(raw.get("cases", whole.cases))
    more = [a for a, n in cases.items() if n > whole.cases.get(a, 0)]
    if more:
        raise BadOption(f"[curve] has more {more[0]} cases than the profile, whose cases are those of strength 1.")
    return Curve(tuple(map(float, strengths)), cases)


def _known(raw: Mapping[str, Any], keys: Collection[str], kind: str) -> None:
    for key in raw:
        if key not in keys:
            raise UnknownName(kind, key, keys)


def _table(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = raw.get(key, {})
    if not isinstance(found, Mapping):
        raise BadOption(f"{key} of the plan must be a table, such as [{key}.NAME].")
    return found


def _text(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key, "")
    if not isinstance(value, str):
        raise BadOption(f"{key} = {value!r} of the plan must be a text.")
    return value


def _flag(raw: Mapping[str, Any], key: str, otherwise: bool) -> bool:
    value = raw.get(key, otherwise)
    if not isinstance(value, bool):
        raise BadOption(f"{key} = {value!r} of the plan must be true or false.")
    return value


def _whole(raw: Mapping[str, Any], key: str, otherwise: int, least: int = 1) -> int:
    value = raw.get(key, otherwise)
    if type(value) is not int or value < least:
        raise BadOption(f"{key} = {value!r} of the plan must be a whole number from {least}.")
    return value


def _options(raw: Any, where: str) -> dict[str, Any]:
    """Options as they are written for a method: ``name = value``, or a table for a part, as in a configuration file."""
    if not isinstance(raw, Mapping):
        raise BadOption(f"{where}: options must be a table.")
    found: dict[str, Any] = {}
    for name, value in raw.items():
        if isinstance(value, Mapping):
            found |= {name if key == "kind" else f"{name}.{key}": inner for key, inner in value.items()}
        else:
            found[name] = value
    return found


def shrunk(cases: Mapping[str, int], factor: float, least: int) -> dict[str, int]:
    """Numbers of cases times ``factor``, in the same proportion, never fewer than ``least`` together where there were as many,
    and at least one per axis."""
    total = sum(cases.values())
    factor = min(1.0, max(factor, least / total)) if total else 1.0
    found = {axis: max(1, int(n * factor)) for axis, n in cases.items()}
    for axis in sorted(cases, key=lambda a: -cases[a]):  # rounding down may have gone below the floor
        while sum(found.values()) < min(least, total) and found[axis] < cases[axis]:
            found[axis] += 1
    return found


def smaller(plan: Plan, factor: float, images: int, attacked: int) -> Plan:
    """The plan with fewer images and attacked cases, never fewer than ``images`` per evaluation and ``attacked`` cases where
    there were as many."""
    cases = shrunk(plan.profile.cases, factor, images)
    curve = {a: min(n, cases[a]) for a, n in shrunk(plan.curve.cases, factor, images).items()}
    attacks = tuple(replace(a, cases=max(min(attacked, a.cases), int(a.cases * factor))) for a in plan.attacks)
    return replace(plan, profile=replace(plan.profile, cases=cases), curve=replace(plan.curve, cases=curve), attacks=attacks)
