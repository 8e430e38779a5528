"""From a name and settings to an object: methods, attacks, guards, detectors, worlds and suites of every installed package."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .attacks import Attack
from .detectors.base import Detector
from .errors import BadFile, BadOption
from .evaluation.suite import SuiteSource
from .guards import Guard
from .methods import Method
from .models.base import DiffusionModel
from .models.load import WORLDS as WORLDS
from .options import Settings, assembled
from .plugins import Plugins

METHODS: Plugins[Method] = Plugins("method", "efface.methods", Method)  # type: ignore[type-abstract]
ATTACKS: Plugins[Attack] = Plugins("attack", "efface.attacks", Attack)  # type: ignore[type-abstract]
DETECTORS: Plugins[Detector] = Plugins("detector", "efface.detectors", Detector)  # type: ignore[type-abstract]
SUITES: Plugins[SuiteSource] = Plugins("suite", "efface.suites", SuiteSource)  # type: ignore[type-abstract]
GUARDS: Plugins[Guard] = Plugins("guard", "efface.guards", Guard)  # type: ignore[type-abstract]


def build_method(name: str, *, preset: str = "", settings: Mapping[str, Any] | None = None) -> Method:
    """The method with the preset's options, overridden by ``settings`` (values may be strings from a command line).

    Without a preset: "paper". Raises UnknownName for a method, preset or option that does not exist, BadOption for a value it
    does not take or for a setting that has no effect beside the others.
    """
    name, settings = moved(name, settings or {})
    return METHODS.find(name).preset(preset or "paper", **settings)


def build_attack(name: str, *, preset: str = "", settings: Mapping[str, Any] | None = None) -> Attack:
    """As :func:`build_method`, for an attack."""
    return ATTACKS.find(name).preset(preset or "paper", **(settings or {}))


def build_guard(text: str) -> Guard:
    """``NAME`` or ``NAME:option=value,option=value``. Raises as :func:`build_method`."""
    end = text.find(":", text.find(".py:") + 4) if ".py:" in text else text.find(":")
    name, rest = (text, "") if end < 0 else (text[:end], text[end + 1 :])
    return assembled(GUARDS.find(name), {}, parse_set(tuple(rest.split(",")) if rest else ()))


def preset_for(cls: type[Settings], model: DiffusionModel) -> str:
    """The preset that fits the model: one of its own ("mini-flow"), else that of its kind ("mini"), else "paper"."""
    names = (model.preset, model.preset.partition("-")[0], "paper")
    return next(name for name in names if name in cls.presets or name == "paper")


def moved(name: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """AP's options that are methods of their own now, as those methods. Warns where one was used."""
    settings = dict(settings)
    if name != "ap":
        return name, settings
    search = str(settings.get("search", ""))
    now = {"none": "naive", "neutral": "neutral", "fixed": "fixed"}.get(search.partition(":")[0], name)
    if float(settings.get("attacks", 0) or 0) > 0:
        now = "rap-attack" if now == "naive" else "rap"
    elif now == "naive" and float(settings.get("shrink", 0) or 0) > 0:
        now = "l2"
    if now != name:
        if now != "rap":
            settings.pop("search", None)
        if ":" in search:
            settings["concept"] = search.partition(":")[2]
        given = f"search={search}" if search in ("none", "neutral") or search.startswith("fixed") else "attacks"
        warnings.warn(f"ap with {given} is the method {now} now.", FutureWarning, stacklevel=3)
    return now, settings


def read_toml(path: str | Path, leave: Sequence[str] = ()) -> dict[str, Any]:
    """Options of a method from a TOML file: ``name = value`` as for ``--set``, or a table for a part,
    ``[search]`` with ``kind = "gumbel"`` and that kind's options. The key ``preset`` chooses the preset.
    ``leave``: keys that are no options and are passed over."""
    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadFile(f"cannot read the configuration {str(path)!r}: {error}.") from error
    settings: dict[str, Any] = {}
    for name, value in table.items():
        if name in leave:
            continue
        if isinstance(value, list) or (isinstance(value, dict) and any(isinstance(v, dict | list) for v in value.values())):
            raise BadOption(f"{str(path)!r}: {name!r} is a list or a table of tables; options are written as name = value.")
        if isinstance(value, dict):
            settings |= {name if key == "kind" else f"{name}.{key}": inner for key, inner in value.items()}
        else:
            settings[name] = value
    return settings


def parse_set(pairs: tuple[str, ...]) -> dict[str, str]:
    """``("steps=100", "lr=1e-4")`` -> dict. A repeated name is an error: one of the two would do nothing."""
    settings: dict[str, str] = {}
    for pair in pairs:
        name, sep, value = pair.partition("=")
        if not sep or not name:
            raise BadOption(f"--set {pair!r} is not of the form name=value.")
        if name in settings:
            raise BadOption(f"--set {name} is given twice.")
        settings[name] = value
    return settings


TABLES: tuple[Plugins[Any], ...] = (METHODS, ATTACKS, DETECTORS, GUARDS, WORLDS, SUITES)
"""Everything that packages can register."""
