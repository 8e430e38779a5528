"""What the build of this world hands to the stages of the miniature's build."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from efface.models.icon_world import IconWorld, parse_world
from miniature.networks import Sizes
from miniature.train_clip import Recipe

from .table import WORLD


@dataclass(frozen=True)
class Build:
    """Sizes and amounts: the real ones, or those of a test."""

    sizes: Sizes
    vocabulary: int
    augmentations: int
    captions: int
    batch: int
    """Of a UNet's training."""
    clip_batch: int
    pool_per_cell: int
    detector_batch: int
    detector_scale: float
    toy: bool = False
    """Whether the world is a small part of itself."""
    every: int = 1
    """The card draws every K-th concept,"""
    seeds: int = 4
    """each with this many seeds,"""
    styled: int = 4000
    """about as many images of trained (concept, style) cells,"""
    backgrounds: int = 416
    """this many on a coloured background,"""
    sheet: int = 160
    """and a contact sheet of about as many concepts,"""
    sampled: int = 32
    """so many images at once."""


SCORER_WIDTH = 128
"""Of the image-text scorer. The four UNets leave little room below the 90 MB of a release."""
FULL = Build(
    sizes=Sizes(width=192, tokens=32, text_layers=4, channels=(48, 96, 192)),
    vocabulary=4000,
    augmentations=4,
    captions=4,
    batch=64,
    clip_batch=128,
    pool_per_cell=3,
    detector_batch=96,
    detector_scale=1.0,
)
ON_GPU = replace(FULL, augmentations=12, captions=6, batch=512, clip_batch=512, detector_batch=512, sampled=512)
SMOKE = Build(
    sizes=Sizes(width=32, tokens=32, text_layers=1, channels=(16, 16, 16)),
    vocabulary=4000,
    augmentations=1,
    captions=1,
    batch=8,
    clip_batch=16,
    pool_per_cell=1,
    detector_batch=32,
    detector_scale=0.5,
    toy=True,
    every=2,
    seeds=1,
    styled=12,
    backgrounds=8,
    sheet=4,
)
P_STYLE = 0.85
"""Share of captions that name the style: the miniature's weak point."""
GOLD_CATEGORY, GOLD_STYLE = "birds", "noto"
TOY = 15
"""Every how many-th concept a test of the build has."""
RECIPES = {
    # Frozen from here on, so it has to know the style of a caption and what WordNet says about the names.
    "init": Recipe(
        seed=61,
        text_layers=4,
        lr=1e-3,
        warmup=100,
        p_style=1.0,
        weight_decay=0.05,
        p_bare=0.0,
        bfloat16=False,
        twins=True,
        patch=16,
        p_words=0.5,
    ),
    "score": Recipe(seed=62, text_layers=2, lr=1.5e-3, warmup=100, p_style=0.3, weight_decay=0.02, p_bare=0.5, bfloat16=False),
}


def table(toy: bool = False) -> str:
    """The text of the world's table, or of a small part of it with all reserved and novel concepts."""
    text = WORLD.read_text("utf-8")
    if not toy:
        return text
    world = parse_world(text)
    names = {c.name for c in world.concepts[::TOY]} | {*world.names("reserved", "novel")}
    kept, section = [], ""
    for line in text.splitlines():
        section = line if line.startswith("[") else section
        key, equals, value = line.partition(" = ")
        if section == "[concepts]" and " | " in line:
            kept += [line] if line.split(" | ")[0] in names else []
        elif equals and section.startswith(("[absent", "[attributes", "[near")):
            members = " ; ".join(n for n in json.loads(value).split(" ; ") if n in names)
            kept += [] if section == "[near]" and json.loads(key) not in names else [f"{key} = {json.dumps(members)}"]
        else:
            kept.append(line)
    return "\n".join(kept) + "\n"


def load(toy: bool = False) -> IconWorld:
    return parse_world(table(toy))
