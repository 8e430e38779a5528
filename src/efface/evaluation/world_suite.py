"""The suite that a model's world gives by itself, for every kind of target."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence

from ..concepts.request import CATEGORY, OBJECT
from ..errors import BadOption, BadRequest
from ..models.world import HYPERNYM, World
from .suite import TEMPLATES, Neighbour, Suite, SuiteSource, lexical_traps

NEAR_CAP, FAR_COUNT, SUBJECTS = 8, 10, 20


class WorldSuite(SuiteSource):
    """The suite that the model's world gives by itself: :func:`world_suite`."""

    name = "world"
    summary = "neighbours, traps and wordings from the model's world; what is taken without --suite"

    def suite(self, world: World | None, targets: Sequence[str]) -> Suite:
        if world is None:
            raise BadOption("the suite 'world' needs a model with a world of its own, or --world NAME.")
        return world_suite(world, targets)


def world_suite(world: World, targets: Sequence[str]) -> Suite:
    """The suite of targets of one kind in a closed world, of concepts that its detector recognises well enough.

    An object's near concepts take from every ranking of similar concepts in turn, and from the target's own group, up to 8 per
    target (fewer per target when there are many, each of which begins with another ranking); far is a fixed random choice from
    other groups. A category is asked for by its members. Near are what is next to it in meaning: other concepts of a group that
    the category is a part of, of a wider category that contains it, and the nearest by the hypernym tree; concepts that resemble
    a member where the world knows too few of these. Far are of none of those groups. For a style, near are the other styles on
    the same objects, far are objects without a style, and the object of a prompt with the style must stay; for an attribute
    likewise.

    Raises UnknownName for a name that the world has not, BadRequest for targets that cannot be measured, alone or together.
    """
    kinds = {name: world.kind_of(name) for name in targets}
    if len(set(kinds.values())) > 1:
        mixed = " and ".join(f"{name!r} ({kind})" for name, kind in kinds.items())
        raise BadRequest(f"targets of several kinds are measured one kind at a time: {mixed}.")
    kind = next(iter(kinds.values()))
    if kind == OBJECT:
        return _objects(world, targets)
    return _categories(world, targets) if kind == CATEGORY else _modifiers(world, targets, kind)


def _objects(world: World, targets: Sequence[str]) -> Suite:
    usable = world.usable()
    for target in targets:
        if target not in usable:
            raise BadRequest(
                f"the report detector recognises {target!r} too rarely (below {world.RECOGNISED}) to measure its erasure; "
                "choose another."
            )
    near, trap, far = _around(world, targets, {world.groups[t] for t in targets})
    synonyms, implicit = ({t: table.get(t, ()) for t in targets} for table in (world.synonyms, world.descriptions))
    return Suite(tuple(targets), near, trap, far, synonyms, implicit, world.templates or TEMPLATES)


def _categories(world: World, targets: Sequence[str]) -> Suite:
    usable = set(world.usable())
    members = {t: tuple(m for m in world.members(t) if m in usable) for t in targets}
    for target, names in members.items():
        if not names:
            raise BadRequest(f"the report detector recognises no concept of {target!r} well enough to measure its erasure.")
    beside = {t: _beside(world, t) for t in targets}
    away = {world.groups[m] for t in targets for m in (*world.members(t), *beside[t])}
    each = {m: beside[t] for t, names in members.items() for m in names}
    near, trap, far = _around(world, list(each), away, each)
    synonyms = {t: (world.word(t), *(s for m in members[t] for s in world.synonyms.get(m, ()))) for t in targets}
    implicit = {t: tuple(d for m in members[t] for d in world.descriptions.get(m, ())) for t in targets}
    rest = (world.templates or TEMPLATES, CATEGORY)
    return Suite(tuple(targets), near, trap, far, synonyms, implicit, *rest, members=members)


def _modifiers(world: World, targets: Sequence[str], kind: str) -> Suite:
    """Styles or attributes, on objects that the model can draw with all of them."""
    mine = [world.modifiers[t] for t in targets]
    for m in mine:
        if m.sensitivity < world.RECOGNISED:
            raise BadRequest(
                f"the unmodified model shows {m.name!r} in {100 * m.sensitivity:.0f} % of the images that ask for it, and below "
                f"{100 * world.RECOGNISED:.0f} % its erasure cannot be measured; choose another."
            )
    families = {m.family for m in mine}
    others = [m for m in world.modifiers.values() if m.family in families and m.name not in targets]
    near = _split([(m.name, f"another {m.family}") for m in others])
    groups = world.groups
    able = [n for n in world.usable() if all(not m.subjects or n in m.subjects for m in mine)]
    chosen = random.Random("subjects " + " ".join(targets)).sample(able, min(SUBJECTS + FAR_COUNT, len(able)))
    subjects, plain = tuple(chosen[:SUBJECTS]), chosen[SUBJECTS:]
    far = _split([(n, "no style or attribute named") for n in plain])
    if not subjects or not far:
        raise BadRequest(f"{world.name} has {len(able)} concepts that show {mine[0].name!r}; more than {SUBJECTS} are needed.")
    said = {m.word for m in world.modifiers.values()}
    templates = tuple(t for t in world.templates or TEMPLATES if not said & set(t.split()))
    return Suite(
        tuple(targets),
        near,
        (),
        far,
        {m.name: m.other_forms for m in mine},
        {},
        templates,
        kind,
        tuple(sorted(subjects, key=list(groups).index)),
        {m.name: m.forms for m in (*mine, *others)},
        {m.name: m.word for m in (*mine, *others)},
    )


def _split(named: Sequence[tuple[str, str]]) -> tuple[Neighbour, ...]:
    """Neighbours with their sources, every other one for claims."""
    return tuple(Neighbour(n, source, "test" if i % 2 == 0 else "dev") for i, (n, source) in enumerate(named))


def _beside(world: World, category: str) -> tuple[str, ...]:
    """The other concepts of the wider categories that contain all of this one."""
    inside = set(world.members(category))
    wider = [m.names for m in world.collections.values() if inside < set(m.names)]
    return tuple(dict.fromkeys(n for names in wider for n in names if n not in inside))


def _turned(sources: Mapping[str, Sequence[str]], i: int) -> dict[str, Sequence[str]]:
    """The same sources, beginning with number i: few concepts are taken for each of many targets, and from every source."""
    names = deque(sources)
    names.rotate(-i)
    return {n: sources[n] for n in names}


def _sources(
    world: World, target: str, i: int, beside: Sequence[str] | None
) -> tuple[dict[str, Sequence[str]], dict[str, Sequence[str]]]:
    """What near concepts of target number i are taken from, by turns, and what besides where these are too few: of a member of a
    category what is near in meaning, and besides the rankings that were measured; of an object all of them at once."""
    rng = random.Random(f"near {target}")
    same = [n for n in world.groups if world.groups[n] == world.groups[target]]
    ranked = dict(world.similar.get(target, {}))
    meant: dict[str, Sequence[str]] = {"same group": rng.sample(same, len(same))}
    if beside is None:
        return _turned({**ranked, **meant}, i), {}
    meant |= {"same wider category": rng.sample(beside, len(beside)), HYPERNYM: ranked.pop(HYPERNYM, [])}
    return _turned(meant, i), _turned(ranked, i)


def _around(
    world: World, targets: Sequence[str], away: set[str], beside: Mapping[str, Sequence[str]] | None = None
) -> tuple[tuple[Neighbour, ...], tuple[Neighbour, ...], tuple[Neighbour, ...]]:
    """Near concepts, lexical traps and far concepts of objects; far ones are of none of the groups ``away``. ``beside``: of every
    member of a category, what stands beside the category."""
    groups, usable = world.groups, world.usable()
    usable_set, taken = set(usable), set(targets)
    cap = max(2, NEAR_CAP // len(targets)) if len(targets) > 1 else NEAR_CAP
    sources = [_sources(world, t, i, None if beside is None else beside[t]) for i, t in enumerate(targets)]
    near: dict[str, str] = {}
    trap: list[tuple[str, str]] = []
    for target, (first, _) in zip(targets, sources, strict=True):
        for name in lexical_traps(target, usable):
            if name not in taken:
                taken.add(name)
                trap.append((name, f"shares a word with {target}"))
        near |= _by_turns(first, cap, usable_set - taken)
        taken |= near.keys()
    for _, besides in sources:
        if len(near) < NEAR_CAP:
            near |= _by_turns(besides, cap, usable_set - taken)
            taken |= near.keys()
    other = [n for n in usable if n not in taken and groups[n] not in away]
    chosen = random.Random("far " + " ".join(targets)).sample(other, min(FAR_COUNT, len(other)))
    return _split([*near.items()]), _split(trap), _split([(n, "another group") for n in chosen])


def _by_turns(sources: Mapping[str, Sequence[str]], most: int, free: set[str]) -> dict[str, str]:
    """Up to ``most`` names of ``free`` and their sources, the first of every source before the second of any."""
    left = {source: deque(n for n in names if n in free) for source, names in sources.items()}
    found: dict[str, str] = {}
    while len(found) < most and any(left.values()):
        for source, names in left.items():
            while names and names[0] in found:
                names.popleft()
            if names and len(found) < most:
                found[names.popleft()] = source
    return found
