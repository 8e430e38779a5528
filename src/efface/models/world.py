"""What is known about the closed world of concepts that a model draws."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..concepts.request import CATEGORY, OBJECT
from ..errors import UnknownName

HYPERNYM = "hypernym"
"""The ranking of :attr:`World.similar` by the tree of meanings; the others are measured on the model."""


@dataclass(frozen=True)
class Modifier:
    """What a prompt can add to an object: a style, or an attribute such as a colour.

    Names of modifiers are unlike those of concepts and categories, because a target is named without saying what it is.
    """

    name: str
    """As a target is named, such as "noto style"; also the text that methods erase."""
    kind: str
    """"style" or "attribute"."""
    family: str
    """Modifiers of one family exclude each other: an image has one style and one background."""
    word: str
    """The part of a prompt that asks for it, such as "noto": what misspellings misspell."""
    forms: tuple[str, ...]
    """Prompts with {} for the object."""
    other_forms: tuple[str, ...]
    """Prompts that say it in other words."""
    sensitivity: float
    """Share of the base model's images that show it when asked for, by the world's detector."""
    subjects: tuple[str, ...] = ()
    """Concepts that the model can draw with it; () for all."""


@dataclass(frozen=True)
class Members:
    """A category's concepts, and the word for all of them."""

    names: tuple[str, ...]
    word: str


@dataclass(frozen=True)
class World:
    """Facts about a model that draws a known list of concepts, so that an erasure can be measured without any input of the user.

    A model without a world (``DiffusionModel.world`` is None) is measured with names that the user gives.
    """

    name: str
    groups: Mapping[str, str]
    """Concept -> group, for every concept that the model was trained on."""
    sensitivity: Mapping[str, float]
    """Concept -> share of its images that the world's detector recognises."""
    similar: Mapping[str, Mapping[str, Sequence[str]]]
    """Concept -> {source of the ranking: names, the most similar first}, measured on the base model."""
    synonyms: Mapping[str, tuple[str, ...]]
    """Concept -> other names for it."""
    descriptions: Mapping[str, tuple[str, ...]]
    """Concept -> descriptions that do not name it."""
    group_words: Mapping[str, str]
    """Group -> the word for all of its concepts."""
    guidance: float
    """The guidance scale at which the model was calibrated."""
    judge: str
    """Import path ``module:name`` of the class that looks at this model's images, built without arguments."""
    gold: str = ""
    """Name of the gold model for :func:`efface.load_model`: the same, but never shown the reserved concepts. "" for none."""
    unseen: tuple[str, ...] = ()
    """The reserved concepts: what the gold model never saw."""
    study_targets: tuple[str, ...] = field(default=())
    """What the studies erase when no target is named."""
    templates: tuple[str, ...] = field(default=())
    """Prompts that the model was trained on, with {} for the concept; () for those that fit any model."""
    modifiers: Mapping[str, Modifier] = field(default_factory=dict)
    """Name -> style or attribute that can be asked for together with a concept."""
    collections: Mapping[str, Members] = field(default_factory=dict)
    """Further categories: wider ones, or those that lie across the groups, such as all faces that smile."""

    RECOGNISED = 0.8
    """Smallest sensitivity at which a concept's erasure can be measured."""

    def names(self) -> tuple[str, ...]:
        """Everything that can be a target: concepts, categories (the groups and the collections), styles and attributes."""
        return (*self.groups, *self.group_words, *self.collections, *self.modifiers)

    def kind_of(self, name: str) -> str:
        """One of :data:`efface.concepts.request.KINDS`. Raises UnknownName."""
        if name in self.groups:
            return OBJECT
        if name in self.modifiers:
            return self.modifiers[name].kind
        if name in self.group_words or name in self.collections:
            return CATEGORY
        raise UnknownName(f"concept of {self.name}", name, self.names())

    def members(self, category: str) -> tuple[str, ...]:
        """The concepts of a category."""
        if category in self.collections:
            return self.collections[category].names
        return tuple(name for name, group in self.groups.items() if group == category)

    def word(self, category: str) -> str:
        """The word for all members of a category."""
        return self.collections[category].word if category in self.collections else self.group_words[category]

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts by which a target is erased: its name, for a category the names of its members and the word for them."""
        return (*self.members(name), self.word(name)) if self.kind_of(name) == CATEGORY else (name,)

    def usable(self) -> list[str]:
        """Concepts that the detector recognises well enough to measure their erasure."""
        return [name for name in self.groups if self.sensitivity[name] >= self.RECOGNISED]

    def wordings(self, target: str) -> dict[str, tuple[str, ...]]:
        """Other words for a concept, by family of wording; none are known for a style or an attribute."""
        if target not in self.groups:
            return {}
        return {
            "synonym": self.synonyms[target],
            "implicit": self.descriptions[target],
            "group": (self.group_words[self.groups[target]],),
        }

    def unseen_like(self, target: str) -> str:
        """A concept that the gold model never saw: the target itself where it is one, else one of its group, else the first."""
        return min(self.unseen, key=lambda n: (n != target, self.groups[n] != self.groups.get(target)))


class WorldSource(abc.ABC):
    """Abstract. Where a world comes from: a final subclass is built without arguments and says what is known of its models.

    A package registers its class under the entry-point group ``efface.worlds``; a class in a file of your own is named
    ``path/to/file.py:Name``. ``--world NAME`` lays the world over a model that does not bring one along.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    models: ClassVar[Mapping[str, str]] = {}
    """Name -> one line, of the models that the package brings along for :func:`efface.load_model`. A name is the world's own or
    begins with it and a hyphen."""

    @abc.abstractmethod
    def world(self) -> World:
        """The facts. Called once per command; may read files."""

    def load(self, model: str, *, dtype: str, device: str) -> Any:
        """The :class:`~efface.models.base.DiffusionModel` of a name in ``models``, with its ``world`` set.

        A source without models is laid over a model by ``--world`` and need not override this. Raises BadFile where the model's
        files are missing.
        """
        raise NotImplementedError(f"{type(self).__name__} names models but does not say how {model!r} is loaded.")
