"""Worlds of icons as data: concepts, categories, styles, backgrounds, and the splits that are decided before training."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..concepts.request import ATTRIBUTE, STYLE
from .world import Members, Modifier, World


@dataclass(frozen=True)
class WorldConcept:
    """One row of a world: ``name`` is what prompts say, ``icon`` what was rendered."""

    name: str
    icon: str
    group: str
    synonyms: tuple[str, ...]
    implicit: tuple[str, ...]
    """Descriptions that do not contain the name."""
    sense: str = ""
    """The WordNet sense as ``lemma.number``, "< lemma.number" for a kind of it that WordNet does not list, "none", or "" where
    the world has no senses."""


@dataclass(frozen=True)
class IconWorld:
    """What a world's table says. A *cell* is one (concept, style) pair."""

    concepts: tuple[WorldConcept, ...]
    styles: tuple[str, ...]
    """The icon sets."""
    backgrounds: tuple[str, ...]
    group_words: dict[str, str]
    reserved: tuple[str, ...]
    """Concepts that the shipped model was trained on and its gold model was not."""
    reserved_style: str
    novel: tuple[str, ...]
    """Concepts that no model was trained on."""
    held_out: frozenset[tuple[str, str]]
    """(concept, style) cells that no model was trained on; they test whether concept and style compose."""
    icon_sets: dict[str, dict[str, str]]
    absent: frozenset[tuple[str, str]] = frozenset()
    """Cells without a picture: the set lacks the icon, or shows something else, or the same as for another concept."""
    novel_styles: tuple[str, ...] = ()
    """Styles that are computed from another style's pictures. No model was trained on them; the detectors know them."""
    reserved_category: str = ""
    """A group, all of whose concepts are reserved too."""
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Category -> its concepts: every group, and wider ones made of several groups."""
    attributes: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """Attribute -> value -> the concepts that have it, such as "expression" -> "smiling" -> faces."""
    wider_words: Mapping[str, str] = field(default_factory=dict)
    """Wider category -> the word for all of its concepts."""
    expression_words: Mapping[str, str] = field(default_factory=dict)
    """Expression -> the word for all faces that have it."""
    near: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Concept -> the nearest others by a hierarchy of meanings, where the table knows one."""
    held_out_synonyms: Mapping[str, str] = field(default_factory=dict)
    """Concept -> the one synonym that never stood in a caption of a picture."""

    @cached_property
    def _rows(self) -> dict[str, WorldConcept]:
        return {c.name: c for c in self.concepts}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {c.name: i for i, c in enumerate(self.concepts)}

    @cached_property
    def drawable(self) -> tuple[tuple[int, ...], ...]:
        """Per concept, the places in ``all_styles`` of the styles that have a picture of it."""
        return tuple(tuple(j for j, s in enumerate(self.all_styles) if self.has(c.name, s)) for c in self.concepts)

    @cached_property
    def _kinds(self) -> dict[str, str]:
        inside = {c.name for c in self.concepts if c.group == self.reserved_category}
        return dict.fromkeys((*self.reserved, *inside), "reserved") | dict.fromkeys(self.novel, "novel")

    @cached_property
    def families(self) -> Mapping[str, Mapping[str, Members]]:
        """Family -> category -> its members and the word for them. Beside the groups, of which every concept has one, these are
        the wider categories, the faces with one expression, and the occupations whose members are a man and a woman, such as
        "doctor". Categories of one family exclude each other."""
        faces, roles = self.attributes.get("expression", {}), self.attributes.get("role", {})
        return {
            "wider category": {n: Members(self.categories[n], word) for n, word in self.wider_words.items()},
            "expression": {f"{n} faces": Members(faces[n], word) for n, word in self.expression_words.items()},
            "occupation": {n: Members(both, n) for n, both in roles.items() if {*both} == {f"man {n}", f"woman {n}"}},
        }

    @property
    def all_styles(self) -> tuple[str, ...]:
        """The icon sets and the computed styles, in the order of the renders."""
        return (*self.styles, *self.novel_styles)

    def names(self, *kinds: str) -> list[str]:
        """Concept names whose split is one of ``kinds`` (ordinary, reserved, novel); all without arguments."""
        wanted = kinds or ("ordinary", "reserved", "novel")
        return [c.name for c in self.concepts if self.kind(c.name) in wanted]

    def kind(self, name: str) -> str:
        return self._kinds.get(name, "ordinary")

    def has(self, name: str, style: str) -> bool:
        """Whether there is a picture of this concept in this style."""
        return (name, style) not in self.absent

    def index(self, name: str) -> int:
        """The concept's place in ``concepts``."""
        return self._places[name]

    def caption_synonyms(self, name: str) -> tuple[str, ...]:
        """The synonyms that captions of pictures may use."""
        kept = self.held_out_synonyms.get(name)
        return tuple(s for s in self[name].synonyms if s != kept)

    def __getitem__(self, name: str) -> WorldConcept:
        return self._rows[name]


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())


def parse_world(text: str) -> IconWorld:
    """Read a world's TOML file. Held-out cells and synonyms follow from the seed that it records.

    A row of the table is ``name | icon | group | synonyms ; ... | descriptions ; ...``, with or without a sense before the
    synonyms.
    """
    raw = tomllib.loads(text)
    concepts = []
    for line in raw["concepts"]["table"].strip().splitlines():
        name, icon, group, *sense, synonyms, implicit = (part.strip() for part in line.split("|"))
        concepts.append(WorldConcept(name, icon, group, _list(synonyms), _list(implicit), *sense))
    split = raw["split"]
    absent = frozenset((name, style) for style, names in raw.get("absent", {}).items() for name in _list(names))
    category = split.get("reserved_category", "")
    kept = {*split["reserved"], *split["novel"], *(c.name for c in concepts if c.group == category)}
    ordinary = [c.name for c in concepts if c.name not in kept]
    return IconWorld(
        concepts=tuple(concepts),
        styles=tuple(raw["styles"]),
        backgrounds=tuple(raw["backgrounds"]),
        group_words=raw["group_words"],
        reserved=tuple(split["reserved"]),
        reserved_style=split["reserved_style"],
        novel=tuple(split["novel"]),
        held_out=_held_out_cells(split, ordinary, raw["styles"], absent),
        icon_sets=raw["icon_sets"],
        absent=absent,
        novel_styles=tuple(raw.get("novel_styles", ())),
        reserved_category=category,
        categories=_categories(concepts, raw.get("wider", {})),
        attributes={
            kind: {value: _list(names) for value, names in table.items()} for kind, table in raw.get("attributes", {}).items()
        },
        near={name: _list(names) for name, names in raw.get("near", {}).items()},
        held_out_synonyms=_held_out_synonyms(split, concepts),
        wider_words=raw.get("wider_words", {}),
        expression_words=raw.get("expression_words", {}),
    )


def _held_out_cells(
    split: dict[str, Any], ordinary: list[str], styles: list[str], absent: frozenset[tuple[str, str]]
) -> frozenset[tuple[str, str]]:
    """At most one cell per concept: every concept stays visible in all other styles."""
    rng = random.Random(split["seed"])
    n_cells = round(split["held_out_cells"] * len(ordinary) * len(styles))
    chosen = rng.sample(ordinary, min(n_cells, len(ordinary)))
    return frozenset((name, rng.choice([s for s in styles if (name, s) not in absent])) for name in chosen)


def _held_out_synonyms(split: dict[str, Any], concepts: list[WorldConcept]) -> dict[str, str]:
    """One synonym of a share of those concepts that have at least two, so that each keeps one for its captions."""
    rng = random.Random(split["seed"] + 1)
    several = [c for c in concepts if len(c.synonyms) > 1]
    chosen = rng.sample(several, round(split.get("held_out_synonyms", 0.0) * len(several)))
    return {c.name: rng.choice(c.synonyms) for c in chosen}


def _categories(concepts: list[WorldConcept], wider: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for c in concepts:
        groups.setdefault(c.group, []).append(c.name)
    return {g: tuple(names) for g, names in groups.items()} | {
        name: tuple(c for g in parts for c in groups.get(g, ())) for name, parts in wider.items()
    }


STYLE_FORMS = ("a STYLE style {}", "a STYLE {}", "a STYLE style picture of a {}", "a STYLE icon of a {}")
STYLE_OTHERWISE = ("a {} in STYLE style", "a {} in the style of STYLE", "{} by STYLE")


def modifiers(
    icons: IconWorld, styles: Mapping[str, Mapping[str, Any]], backgrounds: Mapping[str, Mapping[str, Any]]
) -> dict[str, Modifier]:
    """The icon sets as styles, each with the objects that models of the world were trained to draw in it, and the colours behind
    the icons as attributes. White is left out: it is drawn where no colour is asked for.

    styles, backgrounds: by name the rate at which the model draws what was asked for.
    """
    known = icons.names("ordinary", "reserved")
    found = [
        Modifier(
            name=f"{s} style",
            kind=STYLE,
            family="style",
            word=s,
            forms=tuple(f.replace("STYLE", s) for f in STYLE_FORMS),
            other_forms=tuple(f.replace("STYLE", s) for f in STYLE_OTHERWISE),
            sensitivity=styles[s]["value"],
            subjects=tuple(n for n in known if (n, s) not in icons.held_out and icons.has(n, s)),
        )
        for s in icons.styles
        if s in styles
    ]
    found += [
        Modifier(
            name=f"{b} background",
            kind=ATTRIBUTE,
            family="background",
            word=b,
            forms=(f"a {{}} on a {b} background", f"{{}} on a {b} background"),
            other_forms=(f"a {{}} on {b}", f"a {{}}, {b} background"),
            sensitivity=backgrounds[b]["value"],
        )
        for b in icons.backgrounds
        if b in backgrounds and b != "white"
    ]
    return {m.name: m for m in found}


def world_of(icons: IconWorld, card: Mapping[str, Any], similar: Mapping[str, Mapping[str, Sequence[str]]], **own: Any) -> World:
    """What is known of the concepts that a model of the world was trained on. Novel ones are left out.

    card: the measured facts of the model; similar: concept -> {source: the most similar concepts}; own: the other fields of
    :class:`World`.
    """
    known = [icons[name] for name in icons.names("ordinary", "reserved")]
    rates = (card.get(axis, {}).get(f"per_{axis}", {}) for axis in ("style", "background"))
    names = {c.name for c in known}
    return World(
        collections={
            category: Members(tuple(n for n in m.names if n in names), m.word)
            for family in icons.families.values()
            for category, m in family.items()
        },
        groups={c.name: c.group for c in known},
        sensitivity={c.name: card["concepts"][c.name]["sensitivity"] for c in known},
        similar=similar,
        synonyms={c.name: c.synonyms for c in known},
        descriptions={c.name: c.implicit for c in known},
        group_words=icons.group_words,
        guidance=4.0,
        modifiers=modifiers(icons, *rates),
        **own,
    )
