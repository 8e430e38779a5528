"""Suites: which concepts to look at for a target, and the paired cases. Fixed before any erasure, from the base model alone."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from ..concepts.prompts import Case, filled
from ..concepts.request import OBJECT, normalised
from ..concepts.sensitive import refuse_minors, sensitive
from ..errors import BadFile, UnknownName
from ..models.world import World
from .profiles import Profile

TEMPLATES = ("a {}", "{}", "a picture of a {}", "a photo of a {}", "an image of a {}", "the {}")
"""Prompts that fit any text-to-image model; a world has its own."""


@dataclass(frozen=True)
class Neighbour:
    """A concept to keep. ``source``: why it is in the list; ``split``: methods may tune on "dev", claims rest on "test"."""

    name: str
    source: str
    split: str


@dataclass(frozen=True)
class Asked:
    """One way to ask for a target by its name."""

    concept: str
    """The target, or on the axis content the object that must stay."""
    prompt: str
    word: str
    """The part of the prompt that names the target: its name, the name of a category's member, the word for a style."""
    phrase: str
    """What the prompt asks for, without an article: a name, or for a style the object in that style."""


@dataclass(frozen=True)
class Suite:
    """What an evaluation looks at: targets, concepts to keep, and the words for them.

    A style or an attribute is asked for on ``subjects``, in the prompts ``forms`` of its name, and so are the near styles or
    attributes; a category is asked for by the names of its ``members``. ``words`` has the part of these prompts that names the
    target. All four are empty where the targets are objects. ``kind`` is one of :data:`efface.concepts.request.KINDS`.
    """

    targets: tuple[str, ...]
    near: tuple[Neighbour, ...]
    trap: tuple[Neighbour, ...]
    far: tuple[Neighbour, ...]
    synonyms: Mapping[str, tuple[str, ...]]
    implicit: Mapping[str, tuple[str, ...]]
    templates: tuple[str, ...] = TEMPLATES
    kind: str = OBJECT
    subjects: tuple[str, ...] = ()
    forms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""
    """Where it was written down, with its version and hash; "" for one that was made for this evaluation."""
    listed: tuple[Case, ...] = ()
    """Cases of published prompt lists, in addition to those of the profile."""
    lists: Mapping[str, Any] = field(default_factory=dict)
    """What records say of these lists: their files, and how many prompts were read and left out, with the reasons."""
    hidden: bool = False
    """Whether somebody said that it is sensitive, whatever its names are."""

    @property
    def sensitive(self) -> bool:
        """Whether its images are blurred before they are written: those of a target or of a list that is sexual or graphic."""
        words = [w for t in self.targets for w in (t, *self.synonyms.get(t, ()))]
        return self.hidden or any(case.sensitive for case in self.listed) or sensitive(words)

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that a judge must be able to name."""
        return tuple(dict.fromkeys(name for head in self.heads for name in head))

    @property
    def heads(self) -> tuple[tuple[str, ...], ...]:
        """The names in groups that exclude each other: a judge tells the names of one group apart. An image has one style and
        shows one object."""
        kept = [tuple(n.name for n in group) for group in (self.near, self.trap, self.far)]
        listed = [c.concept for c in self.listed]
        if not self.forms:
            return (tuple(dict.fromkeys((*self.targets, *kept[0], *kept[1], *kept[2], *listed))),)
        others = [c for c in listed if c not in self.targets and c not in kept[0]]
        return ((*self.targets, *kept[0]), tuple(dict.fromkeys((*self.subjects, *kept[1], *kept[2], *others))))

    @property
    def told(self) -> str:
        """What is looked at, in a sentence."""
        kept = [
            f"{axis} {', '.join(n.name for n in group)}" for axis in ("near", "trap", "far") if (group := getattr(self, axis))
        ]
        words = sorted({w for named in self.synonyms.values() for w in named})
        other = f"; other names {', '.join(words)}" if words and not self.forms else ""
        return f"Beside {', '.join(self.targets)} are looked at, {self.source or 'as given'}: {'; '.join(kept)}{other}."

    def json(self) -> dict[str, Any]:
        """Plain data for records; of lists what was counted, and none of their prompts."""
        facts = {k: v for k, v in asdict(replace(self, listed=())).items() if k not in ("listed", "lists", "hidden")}
        facts |= {"sensitive": True} if self.sensitive else {}
        return {**facts, "lists": dict(self.lists)} if self.lists else facts

    def asked(self) -> list[Asked]:
        """Every way to ask for the targets by name: prompts outside, then what they are filled with, then targets."""
        if self.forms:
            forms = range(min(len(self.forms[t]) for t in self.targets))
            return [self._shown(t, t, self.forms[t][k], s) for k in forms for s in self.subjects for t in self.targets]
        by = {t: self.members.get(t, (t,)) for t in self.targets}
        most = max(len(names) for names in by.values())
        rounds = [(t, by[t][k]) for k in range(most) for t in self.targets if k < len(by[t])]
        return [Asked(t, filled(f, name), name, name) for f in self.templates for t, name in rounds]

    def _shown(self, concept: str, target: str, form: str, subject: str) -> Asked:
        """The target, a style or an attribute, on a subject."""
        phrase = self.forms[target][0].replace("a {}", "{}").removeprefix("an ").removeprefix("a ").format(subject)
        return Asked(concept, filled(form, subject), self.words[target], phrase)

    def cases(self, profile: Profile) -> list[Case]:
        """Paired cases of every axis the profile asks for and the suite has concepts for.

        Concepts take turns over prompts, seeds advance when every prompt was used: more prompts before more seeds. Raises
        UnknownName for an axis of the profile that no suite has, and BadRequest for a prompt that speaks of a minor where the
        target or the prompt is sensitive.
        """
        pools = {
            "direct": [(a.concept, a.prompt) for a in self.asked()],
            "synonym": [(t, text) for t, text in self._reworded()],
            "implicit": [
                (t, filled(f, s)) for f in ("{}", "a picture: {}") for t in self.targets for s in self.implicit.get(t, ())
            ],
            "near": self._kept(self.near),
            "trap": self._kept(self.trap),
            "far": self._kept(self.far),
            "content": [(s, filled(self.forms[t][0], s)) for s in self.subjects for t in self.targets],
        }
        cases = []
        for axis, count in profile.cases.items():
            if axis not in pools:
                raise UnknownName(f"axis of the profile {profile.name!r}", axis, pools)
            pool = pools[axis]
            for i in range(count if pool else 0):
                concept, prompt = pool[i % len(pool)]
                cases.append(Case(axis, concept, prompt, seed=1000 * (i % len(pool)) + i // len(pool), guidance=profile.guidance))
        cases += self.listed
        refuse_minors((c.prompt for c in cases), f"the suite for {', '.join(self.targets)}", all_sensitive=self.sensitive)
        return [replace(c, sensitive=True) for c in cases] if self.sensitive else cases

    def _reworded(self) -> list[tuple[str, str]]:
        """Targets with prompts that ask for them in other words."""
        if self.forms:
            return [(t, filled(f, s)) for t in self.targets for f in self.synonyms.get(t, ()) for s in self.subjects]
        return [(t, filled(f, s)) for f in self.templates[:4] for t in self.targets for s in self.synonyms.get(t, ())]

    def _kept(self, group: Sequence[Neighbour]) -> list[tuple[str, str]]:
        """Concepts of an axis to keep with their prompts; a style or an attribute is shown on the subjects in turn."""
        most = max((len(self.forms.get(n.name, self.templates)) for n in group), default=0)
        pool = []
        for k in range(most):
            for i, n in enumerate(group):
                forms = self.forms.get(n.name, self.templates)
                subjects = self.subjects[i % len(self.subjects) :: len(group)] if n.name in self.forms else (n.name,)
                pool += [(n.name, filled(forms[k], s)) for s in subjects] if k < len(forms) else []
        return pool


class SuiteSource(abc.ABC):
    """Abstract. A protocol: which concepts an evaluation looks at, in which words. A final subclass is built without arguments.

    A package registers its class under the entry-point group ``efface.suites``; a class in a file of your own is named
    ``path/to/file.py:Name``. ``efface evaluate --suite NAME`` takes it in place of the model's world or of the names you give.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abc.abstractmethod
    def suite(self, world: World | None, targets: Sequence[str]) -> Suite:
        """The suite of these targets, which are names of the world, or else objects. Raises BadOption for a world, and BadRequest
        for a target, that the protocol is not for."""


def suite_from(raw: Mapping[str, Any]) -> Suite:
    """A suite again from its :meth:`Suite.json`. Raises BadFile for anything else."""
    try:
        near, trap, far = (tuple(Neighbour(**n) for n in raw[group]) for group in ("near", "trap", "far"))
        synonyms, implicit = ({str(t): tuple(map(str, w)) for t, w in raw[k].items()} for k in ("synonyms", "implicit"))
        words = {str(t): str(w) for t, w in raw.get("words", {}).items()}
        forms, members = ({str(t): tuple(map(str, w)) for t, w in raw.get(k, {}).items()} for k in ("forms", "members"))
        rest = (tuple(raw["templates"]), str(raw.get("kind", OBJECT)), tuple(raw.get("subjects", ())), forms, words, members)
        source = str(raw.get("source", ""))
        hidden = bool(raw.get("sensitive", False))
        return Suite(tuple(raw["targets"]), near, trap, far, synonyms, implicit, *rest, source, hidden=hidden)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"the recorded suite cannot be read ({error!r}).") from error


def lexical_traps(target: str, names: Sequence[str]) -> list[str]:
    """Other names that share a word with the target."""
    words = _words(target)
    return [n for n in names if normalised(n) != normalised(target) and words & _words(n)]


def _words(name: str) -> set[str]:
    """The words of a name; punctuation is none."""
    return {piece for piece in normalised(name).split() if piece[0].isalpha() and len(piece) > 1}
