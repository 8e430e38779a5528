"""``efface list``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..concepts.request import OBJECT
from ..errors import BadOption, PluginError
from .main import command
from .options import json_option
from .output import emit

if TYPE_CHECKING:
    from ..guards import Guard
    from ..lists.known import Known
    from ..methods import Method
    from ..models.base import DiffusionModel

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


def _methods(model: DiffusionModel | None = None) -> dict[str, str]:
    """With a model: whether the preset that fits it can run on it, and if not, why."""
    from ..registry import METHODS, preset_for

    def line(cls: type[Method]) -> str:
        text = f"{cls.summary} ({cls.paper})"
        refused = "" if model is None else refusal(model, cls.name, cls.preset(preset_for(cls, model)).needs)
        return f"REFUSED: {refused}" if refused else text

    return _plugins(METHODS, line)


def refusal(model: DiffusionModel, who: str, needs: Sequence[str]) -> str:
    """Why the model cannot serve this method or guard; "" where it can."""
    try:
        model.require(who, needs)
    except BadOption as error:
        return str(error)
    return ""


def _attacks() -> dict[str, str]:
    from ..registry import ATTACKS

    return _plugins(ATTACKS, lambda cls: f"{cls.tier}, {cls.summary} ({cls.paper})")


def _guards(model: DiffusionModel | None = None) -> dict[str, str]:
    from ..registry import GUARDS

    def line(cls: type[Guard]) -> str:
        refused = "" if model is None else refusal(model, cls.name, cls().needs)
        return f"REFUSED: {refused}" if refused else f"{cls.summary} ({cls.paper})"

    return _plugins(GUARDS, line)


def _detectors() -> dict[str, str]:
    from ..registry import DETECTORS

    return _plugins(DETECTORS, lambda cls: str(cls.summary))


def _worlds() -> dict[str, str]:
    from ..registry import WORLDS

    return _plugins(WORLDS, lambda cls: str(cls.summary))


def _suites() -> dict[str, str]:
    from ..registry import SUITES

    return _plugins(SUITES, lambda cls: str(cls.summary))


def _plug_ins() -> dict[str, str]:
    from ..registry import TABLES

    return {
        f"{table.kind} {name}": f"{path}, registered by {owner}"
        for table in TABLES
        for name, (path, owner) in table.points.items()
    }


def _prompts() -> dict[str, str]:
    from ..lists.known import LISTS, ON_THE_HUB

    def line(known: Known) -> str:
        low, high = known.rows if isinstance(known.rows, tuple) else (known.rows, known.rows)
        rows = "" if low is None else f"{low} rows; " if low == high else f"{low} to {high} rows; "
        return f"{rows}licence: {known.licence}{'; sensitive' if known.sensitive else ''}"

    clones = {f"repo:CLONE#{n.replace('{}', 'NAME')}": f"{k.repository}: {line(k)}" for n, k in LISTS.items()}
    return clones | {f"hub:{k.repository}@REVISION": line(k) for k in ON_THE_HUB.values()}


def _models() -> dict[str, str]:
    from ..models.load import known_models

    return {
        **known_models(),
        "FOLDER": "a diffusers folder of Stable Diffusion 1.x, 2.x, XL, 3 or 3.5, of FLUX.1, PixArt, Sana, Z-Image or Wan 2.1",
        "FILE": "a single checkpoint file",
        "OWNER/NAME": "a Hub id",
    }


def _formats() -> dict[str, str]:
    from ..patches.export import FORMATS

    return dict(FORMATS)


def _concepts(model: DiffusionModel | None = None) -> dict[str, str]:
    """Of the miniature, or of a model that has a world: what can be a target, and what its erasure cannot be measured for."""
    from ..models.mini import mini_world

    world = mini_world()
    if model is not None:
        if model.world is None:
            raise BadOption(f"{model.name} has no world that lists its concepts; any words can be a target.")
        world = model.world
    shown = {**world.sensitivity, **{name: m.sensitivity for name, m in world.modifiers.items()}}

    def line(name: str) -> str:
        kind = world.kind_of(name)
        said = [f"{world.groups[name]}, {'reserved' if name in world.unseen else 'ordinary'}" if kind == OBJECT else kind]
        rate = shown.get(name, 1.0)
        if rate < world.RECOGNISED:
            said.append(f"recognised in {100 * rate:.0f} % of images, too few to measure its erasure")
        return "; ".join(said)

    unseen = {} if model is not None else dict.fromkeys(_novel(), "no model was trained on it")
    return {name: line(name) for name in world.names()} | unseen


def _novel() -> list[str]:
    """The miniature's concepts that no model was trained on."""
    from ..models.mini.world import load_world

    return load_world().names("novel")


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": _methods,
    "attacks": _attacks,
    "guards": _guards,
    "detectors": _detectors,
    "worlds": _worlds,
    "suites": _suites,
    "prompts": _prompts,
    "models": _models,
    "formats": _formats,
    "concepts": _concepts,
    "metrics": lambda: METRICS,
    "plugins": _plug_ins,
}


FOR_MODEL: dict[str, Callable[[DiffusionModel], dict[str, str]]] = {"methods": _methods, "guards": _guards, "concepts": _concepts}


@command("list", examples="efface list methods\n\nefface list methods --model tiny-sd3\n\nefface list concepts --model mini-flow")
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.option(
    "--model",
    "source",
    help="Of methods and guards: also say which this model cannot serve, and why. Of concepts: those of this model [mini].",
)
@json_option
def list_(kind: str, source: str | None, as_json: bool) -> None:
    """List what there is: methods, attacks, guards, detectors, worlds, suites, published prompt lists, models, formats, concepts,
    metrics, plug-ins."""
    if source is None:
        rows = KINDS[kind]()
    elif kind in FOR_MODEL:
        from ..models.load import load_model

        rows = FOR_MODEL[kind](load_model(source))
    else:
        raise BadOption(f"--model says nothing about {kind}; give it with {', '.join(FOR_MODEL)}.")
    width = max([20, *(len(name) + 2 for name in rows)])
    emit(as_json, rows, "\n".join(f"{name:<{width}}{text}" for name, text in rows.items()))
