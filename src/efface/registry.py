"""From a name and settings to an object: methods, attacks, guards, detectors, worlds and suites of every installed package.

A package registers a class under an entry-point group; ours stand in the same groups of our own ``pyproject.toml``. A class in
a file of the user's own is named ``path/to/file.py:Name``.
"""

from __future__ import annotations

import importlib.util
import sys
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from .attacks import Attack
from .detectors.base import Detector
from .errors import BadFile, BadOption, PluginError, UnknownName
from .evaluation.suite import SuiteSource
from .guards import Guard
from .methods import Method
from .models.base import DiffusionModel
from .models.world import WorldSource
from .options import Settings, assembled

T = TypeVar("T")


class Plugins(Mapping[str, type[T]], Generic[T]):
    """The classes of one entry-point group by name. A class is imported when it is asked for."""

    def __init__(self, kind: str, group: str, base: type[T]) -> None:
        self.kind, self.group, self.base = kind, group, base

    @cached_property
    def points(self) -> dict[str, tuple[str, str]]:
        """Name -> (import path ``module:class``, distribution). Raises PluginError where two packages claim one name."""
        found: dict[str, tuple[str, str]] = {}
        for name, path, owner in (*own_points(self.group), *other_points(self.group)):
            if name in found:
                raise PluginError(
                    f"the {self.kind} {name!r} is registered by {found[name][1]} and by {owner}; uninstall one of the two."
                )
            found[name] = path, owner
        return dict(sorted(found.items()))

    def __getitem__(self, name: str) -> type[T]:
        path, owner = self.points[name]
        cls = resolve(path, owner)
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise PluginError(f"{owner} registers {path} as {self.kind} {name!r}, but it is no {self.base.__name__}.")
        if getattr(cls, "name", None) != name:
            raise PluginError(f"{owner} registers {path} as {name!r}, but its own name is {getattr(cls, 'name', None)!r}.")
        return cls

    def __iter__(self) -> Iterator[str]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def find(self, name: str) -> type[T]:
        """The class of a registered name, or of ``path/to/file.py:Name``. Raises UnknownName, BadFile or PluginError."""
        path, colon, attribute = name.rpartition(":")
        if colon and path.endswith(".py"):
            cls = getattr(module_of(Path(path)), attribute, None)
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise BadFile(f"{path} has no {self.base.__name__} of the name {attribute!r}.")
            return cls
        if name not in self:
            raise UnknownName(self.kind, name, self)
        return self[name]


def own_points(group: str) -> list[tuple[str, str, str]]:
    """(name, import path, "efface") of what we register ourselves: from the installed metadata, or in a source checkout that
    was never installed from the ``pyproject.toml`` above it."""
    try:
        points = metadata.distribution("efface").entry_points.select(group=group)
        found = [(p.name, p.value, "efface") for p in points]
    except metadata.PackageNotFoundError:
        table = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
        found = [(n, v, "efface") for n, v in table["project"]["entry-points"].get(group, {}).items()]
    return found


def other_points(group: str) -> list[tuple[str, str, str]]:
    """(name, import path, distribution) of what other installed packages register."""
    found = {(p.name, p.value, p.dist.name if p.dist is not None else "?") for p in metadata.entry_points(group=group)}
    return sorted(point for point in found if point[2] != "efface")


def resolve(path: str, owner: str = "") -> Any:
    """The object that an import path ``module:name`` names. Raises PluginError where nothing can be imported."""
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # a plug-in may fail in any way while it is imported
        of = f" of {owner}" if owner else ""
        raise PluginError(f"{path!r}{of} cannot be imported ({type(error).__name__}: {error}).") from error


def module_of(path: Path) -> Any:
    """A Python file of the user's own as a module. Raises BadFile where there is none or it cannot be run."""
    if not path.is_file():
        raise BadFile(f"there is no file {str(path)!r}.")
    name = f"efface_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadFile(f"{path} cannot be run ({type(error).__name__}: {error}).") from error
    return module


METHODS: Plugins[Method] = Plugins("method", "efface.methods", Method)  # type: ignore[type-abstract]
ATTACKS: Plugins[Attack] = Plugins("attack", "efface.attacks", Attack)  # type: ignore[type-abstract]
DETECTORS: Plugins[Detector] = Plugins("detector", "efface.detectors", Detector)  # type: ignore[type-abstract]
WORLDS: Plugins[WorldSource] = Plugins("world", "efface.worlds", WorldSource)  # type: ignore[type-abstract]
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
