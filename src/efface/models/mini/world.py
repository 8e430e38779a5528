"""The miniature's world as data: concepts, groups, styles, backgrounds, and the split decided before training."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class WorldConcept:
    """One row of the world: ``name`` is what prompts say, ``icon`` what was rendered."""

    name: str
    icon: str
    group: str
    synonyms: tuple[str, ...]
    implicit: tuple[str, ...]


@dataclass(frozen=True)
class IconWorld:
    concepts: tuple[WorldConcept, ...]
    styles: tuple[str, ...]
    backgrounds: tuple[str, ...]
    group_words: dict[str, str]
    reserved: tuple[str, ...]
    reserved_style: str
    novel: tuple[str, ...]
    held_out: frozenset[tuple[str, str]]
    """(concept, style) cells that no model was trained on; they test whether concept and style compose."""
    icon_sets: dict[str, dict[str, str]]

    def names(self, *kinds: str) -> list[str]:
        """Concept names whose split is one of ``kinds`` (ordinary, reserved, novel); all without arguments."""
        wanted = kinds or ("ordinary", "reserved", "novel")
        return [c.name for c in self.concepts if self.kind(c.name) in wanted]

    def kind(self, name: str) -> str:
        return "reserved" if name in self.reserved else "novel" if name in self.novel else "ordinary"

    def __getitem__(self, name: str) -> WorldConcept:
        for concept in self.concepts:
            if concept.name == name:
                return concept
        raise KeyError(name)


@cache
def load_world() -> IconWorld:
    """Parse the packaged ``world.toml``; the held-out cells follow from its recorded seed."""
    raw = tomllib.loads(resources.files(__package__).joinpath("world.toml").read_text("utf-8"))
    concepts = []
    for line in raw["concepts"]["table"].strip().splitlines():
        name, icon, group, synonyms, implicit = (part.strip() for part in line.split("|"))
        concepts.append(
            WorldConcept(
                name, icon, group, tuple(s.strip() for s in synonyms.split(";")), tuple(s.strip() for s in implicit.split(";"))
            )
        )
    split = raw["split"]
    rng = random.Random(split["seed"])
    ordinary = [c.name for c in concepts if c.name not in split["reserved"] + split["novel"]]
    n_cells = round(split["held_out_cells"] * len(ordinary) * len(raw["styles"]))
    # At most one cell per concept: every concept stays visible in all other styles.
    held_out = frozenset((name, rng.choice(raw["styles"])) for name in rng.sample(ordinary, min(n_cells, len(ordinary))))
    return IconWorld(
        concepts=tuple(concepts),
        styles=tuple(raw["styles"]),
        backgrounds=tuple(raw["backgrounds"]),
        group_words=raw["group_words"],
        reserved=tuple(split["reserved"]),
        reserved_style=split["reserved_style"],
        novel=tuple(split["novel"]),
        held_out=held_out,
        icon_sets=raw["icon_sets"],
    )
