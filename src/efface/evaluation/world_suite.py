"""The suite that a model's world gives by itself, for every kind of target."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..concepts.request import CATEGORY, OBJECT
from ..errors import BadOption, BadRequest
from ..models.world import World
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
    target (fewer per target when there are many); far is a fixed random choice from other groups. A category is asked for by its
    members; near are concepts that resemble a member. For a style, near are the other styles on the same objects, far are
    objects without a style, and the object of a prompt with the style must stay; for an attribute likewise.

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
    away = {world.groups[m] for t in targets for m in world.members(t)}
    near, trap, far = _around(world, [m for names in members.values() for m in names], away)
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


def _around(
    world: World, targets: Sequence[str], away: set[str]
) -> tuple[tuple[Neighbour, ...], tuple[Neighbour, ...], tuple[Neighbour, ...]]:
    """Near concepts, lexical traps and far concepts of objects; far ones are of none of the groups ``away``."""
    groups, similar, usable = world.groups, world.similar, world.usable()
    usable_set, taken = set(usable), set(targets)
    cap = max(2, NEAR_CAP // len(targets)) if len(targets) > 1 else NEAR_CAP
    near: list[tuple[str, str]] = []
    trap: list[tuple[str, str]] = []
    for target in targets:
        for name in lexical_traps(target, usable):
            if name not in taken:
                taken.add(name)
                trap.append((name, f"shares a word with {target}"))
        rng = random.Random(f"near {target}")
        same = [n for n in groups if groups[n] == groups[target]]
        sources = {**{s: list(v) for s, v in similar.get(target, {}).items()}, "same group": rng.sample(same, len(same))}
        count = 0
        while count < cap and any(sources.values()):
            for source, names in sources.items():
                while names and (names[0] in taken or names[0] not in usable_set):
                    names.pop(0)
                if names and count < cap:
                    taken.add(names[0])
                    near.append((names.pop(0), source))
                    count += 1
    other = [n for n in usable if n not in taken and groups[n] not in away]
    chosen = random.Random("far " + " ".join(targets)).sample(other, min(FAR_COUNT, len(other)))
    return _split(near), _split(trap), _split([(n, "another group") for n in chosen])
