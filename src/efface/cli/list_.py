"""``efface list``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..errors import PluginError
from .main import command
from .options import json_option
from .output import emit

METRICS = {
    "erased_valid": "target axes: share of images that are valid and do not show the target, of cases the base model gets right",
    "preserved": "keep axes: share of images that still show their concept, of cases the base model gets right",
    "detection": "share of valid images in which the report detector names the concept",
    "difference": "detection minus the base model's, paired, Newcombe interval, McNemar mid-p",
    "clip_t": "100 max(cos, 0) of image and prompt, paired difference against the base model",
    "clip_i": "cosine of image embeddings of this and the base model's image of the same case",
    "invalid": "images that are non-finite, uniform, or nothing by the detector: never a success",
}


def _plugins(table: Any, line: Callable[[Any], str]) -> dict[str, str]:
    """One line per registered class; one that cannot be loaded says why."""
    rows = {}
    for name in table:
        try:
            rows[name] = line(table[name])
        except PluginError as error:
            rows[name] = f"cannot be used: {error}"
    return rows


def _methods() -> dict[str, str]:
    from ..registry import METHODS

    return _plugins(METHODS, lambda cls: f"{cls.summary} ({cls.paper})")


def _attacks() -> dict[str, str]:
    from ..registry import ATTACKS

    return _plugins(ATTACKS, lambda cls: f"{cls.tier}, {cls.summary} ({cls.paper})")


def _guards() -> dict[str, str]:
    from ..registry import GUARDS

    return _plugins(GUARDS, lambda cls: f"{cls.summary} ({cls.paper})")


def _detectors() -> dict[str, str]:
    from ..registry import DETECTORS

    return _plugins(DETECTORS, lambda cls: str(cls.summary))


def _plug_ins() -> dict[str, str]:
    from ..registry import ATTACKS, DETECTORS, GUARDS, METHODS

    return {
        f"{table.kind} {name}": f"{path}, registered by {owner}"
        for table in (METHODS, ATTACKS, DETECTORS, GUARDS)
        for name, (path, owner) in table.points.items()
    }


def _models() -> dict[str, str]:
    from ..models.load import BUNDLED

    return {
        **BUNDLED,
        "FOLDER": "a diffusers folder of Stable Diffusion 1.x, 2.x or XL",
        "FILE": "a single checkpoint file",
        "OWNER/NAME": "a Hub id",
    }


def _formats() -> dict[str, str]:
    from ..patches.export import FORMATS

    return dict(FORMATS)


def _concepts() -> dict[str, str]:
    from ..models.mini.world import load_world

    world = load_world()
    return {c.name: f"{c.group}, {world.kind(c.name)}" for c in world.concepts}


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": _methods,
    "attacks": _attacks,
    "guards": _guards,
    "detectors": _detectors,
    "models": _models,
    "formats": _formats,
    "concepts": _concepts,
    "metrics": lambda: METRICS,
    "plugins": _plug_ins,
}


@command("list", examples="efface list methods")
@click.argument("kind", type=click.Choice(list(KINDS)))
@json_option
def list_(kind: str, as_json: bool) -> None:
    """List what there is: methods, attacks, guards, detectors, models, formats, concepts, metrics, or registered plug-ins."""
    rows = KINDS[kind]()
    width = max(20, *(len(name) + 2 for name in rows))
    emit(as_json, rows, "\n".join(f"{name:<{width}}{text}" for name, text in rows.items()))
