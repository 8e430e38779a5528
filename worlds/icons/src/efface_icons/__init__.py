"""The world of icons: 891 concepts in six styles, and Stable Diffusion 1.x models at 48 pixels that draw them.

The weights are a folder of their own. It lies in this package as ``weights``, or where the environment variable ``EFFACE_ICONS``
says. It holds the table that its models were trained for, so that names and weights cannot differ.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from efface.errors import BadFile
from efface.models.icon_world import IconWorld, parse_world, world_of
from efface.models.world import World, WorldSource

if TYPE_CHECKING:
    from efface.models.sd import StableDiffusion

HERE = Path(__file__).parent
TABLE = HERE / "world.toml"
FOLDER = "EFFACE_ICONS"
UNETS = {"icons": ".", "icons-gold": "gold", "icons-gold-category": "gold-category", "icons-gold-style": "gold-style"}
"""Model -> folder of its UNet below the weights. All other parts are shared."""
TEMPLATES = (
    "a {}",
    "{}",
    "a picture of a {}",
    "an image of a {}",
    "a photo of a {}",
    "an icon of a {}",
    "the {}",
    "a {} on a blue background",
    "a {} on a yellow background",
    "a noto style {}",
)
"""What the models were trained on."""


def weights() -> Path:
    """The folder of the weights. Raises BadFile, with what to do, where there are none."""
    named = os.environ.get(FOLDER)
    folder = Path(named) if named else HERE / "weights"
    if not (folder / "model_index.json").is_file():
        where = f"{folder}, where {FOLDER} points" if named else str(folder)
        raise BadFile(
            f"the weights of the world of icons are missing from {where}. Set {FOLDER} to a folder of them, or build them in a "
            "source checkout of efface: python -m worlds.icons.build all --work runs/icons (hours on a CPU, minutes on a GPU)."
        )
    return folder


def table() -> IconWorld:
    """The world that the weights were trained for."""
    return _table(weights() / "world.toml")


@cache
def _table(path: Path) -> IconWorld:
    return parse_world(path.read_text("utf-8"))


def measured(name: str) -> dict[str, Any]:
    """``card.json`` or ``similar.json`` of the weights. Raises BadFile where the build has not come that far."""
    return _measured(weights() / name)


@cache
def _measured(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(f"cannot read {path} ({error}); make it with python -m worlds.icons.build {path.stem}.") from error
    return facts


def load_icons(
    model: str = "icons", *, dtype: str = "float32", device: str = "cpu", folder: Path | None = None
) -> StableDiffusion:
    """One of the models, without what is known of its world. Raises BadFile where its files are missing.

    ``icons`` is the shipped model. The others were trained like it, and never saw the reserved concepts, style and category
    (``icons-gold``), one more category (``icons-gold-category``) and one more style (``icons-gold-style``).
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from efface.models.parts import named_dtype
    from efface.models.sd import StableDiffusion

    folder = folder or weights()
    kind = named_dtype(dtype)
    unet = folder / UNETS[model] / "unet"
    if not (unet / "config.json").is_file():
        raise BadFile(f"{model} was not trained for these weights: there is no {unet}. The stage unet of the build makes it.")
    world = _table(folder / "world.toml")
    loaded = StableDiffusion.from_folder(
        folder, dtype=dtype, device=device, name=model, preset="mini", concept_names=world.names("ordinary", "reserved")
    )
    if model != "icons":
        network = UNet2DConditionModel.from_pretrained(unet.parent, subfolder="unet", torch_dtype=kind)
        loaded.unet = network.to(device).eval().requires_grad_(False)
    return loaded


class IconsWorld(WorldSource):
    """The world of icons and its models."""

    name = "icons"
    summary = "891 icons in six styles, with categories, expressions and variants of people"
    models: ClassVar[Mapping[str, str]] = {
        "icons": "the world of icons drawn by a Stable Diffusion 1.x at 48 px",
        "icons-gold": "the same without the reserved concepts, style and category: it never saw them",
        "icons-gold-category": "the same without one category: it never saw it",
        "icons-gold-style": "the same without one style: it never saw it",
    }

    def load(self, model: str, *, dtype: str, device: str) -> StableDiffusion:
        loaded = load_icons(model, dtype=dtype, device=device)
        loaded.world = self.world()
        return loaded

    def world(self) -> World:
        """What is known of the concepts that the shipped model was trained on. Novel ones are left out."""
        icons, card = table(), measured("card.json")
        return world_of(
            icons,
            card,
            measured("similar.json"),
            name="icons",
            judge="efface_icons.judge:IconsJudge",
            gold="icons-gold",
            unseen=tuple(icons.names("reserved")),
            templates=TEMPLATES,
            study_targets=tuple(n for n in ("fire engine", "dog face", "palm tree", "hospital") if n in card["concepts"]),
        )
