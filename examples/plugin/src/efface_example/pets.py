"""Pets: what is known about a model that draws four things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from efface.evaluation.judges import DetectorJudge
from efface.models.world import World, WorldSource

from .brightness import Brightness

GROUPS = {"dog": "animal", "bus": "vehicle", "cat": "animal", "house": "place"}


class PetsJudge(DetectorJudge):
    """The judge of this world, built without arguments."""

    def __init__(self) -> None:
        super().__init__(Brightness(list(GROUPS)))


class Pets(WorldSource):
    """Two animals, a place and a vehicle."""

    name = "pets"
    summary = "an example: four concepts of the tiny model"

    def world(self) -> World:
        others: Mapping[str, Any] = {a: {"by hand": [b for b in GROUPS if b != a]} for a in GROUPS}
        return World(
            name="pets",
            groups=GROUPS,
            sensitivity=dict.fromkeys(GROUPS, 1.0),  # measure it: the share of a concept's images that the judge recognises
            similar=others,
            synonyms={"cat": ("kitten",), "dog": ("puppy",), "house": ("home",), "bus": ("coach",)},
            descriptions=dict.fromkeys(GROUPS, ()),
            group_words={"animal": "animal", "place": "building", "vehicle": "vehicle"},
            guidance=3.0,
            judge="efface_example.pets:PetsJudge",
        )
