"""The bundled miniature: a complete Stable Diffusion 1.x at 48 pixels, its gold model, and what is known about both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import BadFile
from ..icon_world import world_of
from ..world import World, WorldSource
from .world import load_world

if TYPE_CHECKING:
    from ..sd import StableDiffusion

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"
TEMPLATES = (
    "a {}",
    "{}",
    "a picture of a {}",
    "a photo of a {}",
    "an image of a {}",
    "an icon of a {}",
    "the {}",
    "a {} on a blue background",
    "a {} on a yellow background",
    "a noto style {}",
)
"""What the miniature was trained on."""


def load_mini(*, gold: bool = False, dtype: str = "float32", device: str = "cpu") -> StableDiffusion:
    """The shipped model, or with ``gold`` the UNet that never saw the reserved concepts (all else is shared)."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from ..parts import named_dtype
    from ..sd import StableDiffusion

    if not (WEIGHTS / "model_index.json").is_file():
        raise BadFile(
            f"the bundled miniature is missing from {WEIGHTS}; reinstall efface, or build it: python -m miniature.build --help."
        )
    world = load_world()
    model = StableDiffusion.from_folder(
        WEIGHTS, dtype=dtype, device=device, name="mini", preset="mini", concept_names=world.names("ordinary", "reserved")
    )
    model.world = mini_world()
    if gold:
        model.name = "mini-gold"
        unet = UNet2DConditionModel.from_pretrained(WEIGHTS / "gold", subfolder="unet", torch_dtype=named_dtype(dtype))
        model.unet = unet.to(device).eval().requires_grad_(False)
    return model


@cache
def mini_world() -> World:
    """What is known about the miniature's concepts. Novel ones, which no model of ours has seen, are left out."""
    icons = load_world()
    return world_of(
        icons,
        card(),
        similar(),
        name="mini",
        judge="efface.evaluation.judges:MiniJudge",
        gold="mini-gold",
        unseen=icons.reserved,
        templates=TEMPLATES,
        study_targets=("fire engine", "dog", "palm tree", "castle"),  # four groups
    )


class MiniWorld(WorldSource):
    """The miniature's own world, which it brings along."""

    name = "mini"
    summary = "some 120 icons, for the miniature"
    models: ClassVar[Mapping[str, str]] = {
        "mini": "the bundled miniature Stable Diffusion (icons, 48 px)",
        "mini-gold": "the miniature before it saw the reserved concepts: the gold model of their erasure",
    }

    def world(self) -> World:
        return mini_world()

    def load(self, model: str, *, dtype: str, device: str) -> StableDiffusion:
        return load_mini(gold=model == "mini-gold", dtype=dtype, device=device)


@cache
def card() -> dict[str, Any]:
    """The measured facts of the shipped miniature, written by ``python -m miniature.build card``."""
    facts: dict[str, Any] = json.loads((HERE / "card.json").read_text("utf-8"))
    return facts


@cache
def similar() -> dict[str, dict[str, list[str]]]:
    """concept -> {source: most similar concepts}, measured on the base model by ``python -m miniature.build suite``."""
    table: dict[str, dict[str, list[str]]] = json.loads((HERE / "similar.json").read_text("utf-8"))
    return table
