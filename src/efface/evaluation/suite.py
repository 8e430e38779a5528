"""Suites: which concepts to look at for a target, and the paired cases. Fixed before any erasure, from the base model alone."""

from __future__ import annotations

import abc
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ..concepts.prompts import Case, filled
from ..concepts.request import normalised
from ..errors import BadFile, BadOption
from ..models.world import World
from .profiles import Profile

TEMPLATES = ("a {}", "{}", "a picture of a {}", "a photo of a {}", "an image of a {}", "the {}")
"""Prompts that fit any text-to-image model; a world has its own."""
NEAR_CAP, FAR_COUNT = 8, 10


@dataclass(frozen=True)
class Neighbour:
    """A concept to keep. ``source``: why it is in the list; ``split``: methods may tune on "dev", claims rest on "test"."""

    name: str
    source: str
    split: str


@dataclass(frozen=True)
class Suite:
    targets: tuple[str, ...]
    near: tuple[Neighbour, ...]
    trap: tuple[Neighbour, ...]
    far: tuple[Neighbour, ...]
    synonyms: Mapping[str, tuple[str, ...]]
    implicit: Mapping[str, tuple[str, ...]]
    templates: tuple[str, ...] = TEMPLATES

    @property
    def names(self) -> tuple[str, ...]:
        """Targets and kept concepts: what a judge must tell apart."""
        return (*self.targets, *(n.name for group in (self.near, self.trap, self.far) for n in group))

    def json(self) -> dict[str, Any]:
        return asdict(self)

    def cases(self, profile: Profile) -> list[Case]:
        """Paired cases of every axis the profile asks for and the suite has concepts for.

        Concepts take turns over prompts, seeds advance when every prompt was used: more prompts before more seeds.
        """
        pools: dict[str, list[tuple[str, str]]] = {
            "direct": [(t, filled(f, t)) for f in self.templates for t in self.targets],
            "synonym": [(t, filled(f, s)) for f in self.templates[:4] for t in self.targets for s in self.synonyms.get(t, ())],
            "implicit": [
                (t, filled(f, s)) for f in ("{}", "a picture: {}") for t in self.targets for s in self.implicit.get(t, ())
            ],
        }
        for axis in ("near", "trap", "far"):
            pools[axis] = [(n.name, filled(f, n.name)) for f in self.templates for n in getattr(self, axis)]
        cases = []
        for axis, count in profile.cases.items():
            pool = pools[axis]
            for i in range(count if pool else 0):
                concept, prompt = pool[i % len(pool)]
                cases.append(Case(axis, concept, prompt, seed=1000 * (i % len(pool)) + i // len(pool), guidance=profile.guidance))
        return cases


class SuiteSource(abc.ABC):
    """Abstract. A protocol: which concepts an evaluation looks at, in which words. A final subclass is built without arguments.

    A package registers its class under the entry-point group ``efface.suites``; a class in a file of your own is named
    ``path/to/file.py:Name``. ``efface evaluate --suite NAME`` takes it in place of the model's world or of the names you give.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abc.abstractmethod
    def suite(self, world: World | None, targets: Sequence[str]) -> Suite:
        """The suite of these targets. Raises BadOption for a world, and BadRequest for a target, that the protocol is not for."""


class WorldSuite(SuiteSource):
    """The suite that the model's world gives by itself: :func:`world_suite`."""

    name = "world"
    summary = "neighbours, traps and wordings from the model's world; what is taken without --suite"

    def suite(self, world: World | None, targets: Sequence[str]) -> Suite:
        if world is None:
            raise BadOption("the suite 'world' needs a model with a world of its own, or --world NAME.")
        return world_suite(world, targets)


def suite_from(raw: Mapping[str, Any]) -> Suite:
    """A suite again from its :meth:`Suite.json`. Raises BadFile for anything else."""
    try:
        near, trap, far = (tuple(Neighbour(**n) for n in raw[group]) for group in ("near", "trap", "far"))
        synonyms, implicit = ({str(t): tuple(map(str, w)) for t, w in raw[k].items()} for k in ("synonyms", "implicit"))
        return Suite(tuple(raw["targets"]), near, trap, far, synonyms, implicit, tuple(raw["templates"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"the recorded suite cannot be read ({error!r}).") from error


def lexical_traps(target: str, names: Sequence[str]) -> list[str]:
    """Other names that share a word with the target."""
    words = _words(target)
    return [n for n in names if normalised(n) != normalised(target) and words & _words(n)]


def _words(name: str) -> set[str]:
    """The words of a name; punctuation is none."""
    return {piece for piece in normalised(name).split() if piece[0].isalpha() and len(piece) > 1}


def world_suite(world: World, targets: Sequence[str]) -> Suite:
    """Suite of targets in a closed world, of concepts that its detector recognises well enough.

    Near takes from every ranking of similar concepts in turn, and from the target's own group, up to 8 per target (fewer per
    target when there are many); far is a fixed random choice from other groups.
    """
    groups, similar, usable = world.groups, world.similar, world.usable()
    usable_set, taken = set(usable), set(targets)
    cap = max(2, NEAR_CAP // len(targets)) if len(targets) > 1 else NEAR_CAP
    near: list[Neighbour] = []
    trap: list[Neighbour] = []
    for target in targets:
        for name in lexical_traps(target, usable):
            if name not in taken:
                taken.add(name)
                trap.append(Neighbour(name, f"shares a word with {target}", "test" if len(trap) % 2 == 0 else "dev"))
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
                    near.append(Neighbour(names.pop(0), source, "test" if len(near) % 2 == 0 else "dev"))
                    count += 1
    other = [n for n in usable if n not in taken and groups[n] not in {groups[t] for t in targets}]
    chosen = random.Random("far " + " ".join(targets)).sample(other, min(FAR_COUNT, len(other)))
    far = [Neighbour(n, "another group", "test" if i % 2 == 0 else "dev") for i, n in enumerate(chosen)]
    synonyms, implicit = ({t: table.get(t, ()) for t in targets} for table in (world.synonyms, world.descriptions))
    templates = world.templates or TEMPLATES
    return Suite(tuple(targets), tuple(near), tuple(trap), tuple(far), synonyms, implicit, templates)
