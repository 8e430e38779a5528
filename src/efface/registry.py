"""Options of methods, attacks and guards from presets, TOML files and ``name=value`` pairs: one description, the dataclass."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .attacks import ATTACKS, Attack
from .errors import BadFile, BadOption, UnknownName
from .guards import GUARDS, Guard
from .methods import METHODS, ROWS, Method
from .options import refuse_idle


def method_class(name: str) -> type[Method]:
    known = {**METHODS, **ROWS}
    if name not in known:
        raise UnknownName("method", name, known)
    return known[name]


def summary(name: str) -> str:
    """One line about a method, or about what a row of :data:`efface.methods.ROWS` lays over it."""
    cls = method_class(name)
    return f"{cls.name} with " + ", ".join(f"{k}={v}" for k, v in cls.presets[name].items()) if name in ROWS else cls.summary


def build_method(name: str, *, preset: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method with the preset's options, overridden by ``settings`` (values may be strings from a command line). A name of
    :data:`efface.methods.ROWS` lays its own preset over the chosen one.

    Raises UnknownName for a method, preset or option that does not exist, BadOption for a value it does not take
    or for a setting that does nothing beside the others.
    """
    cls = method_class(name)
    over = cls.presets[name] if name in ROWS else {}
    built: Method = _build(cls, name, {**_preset(cls, name, preset), **over}, settings)
    return built


def attack_class(name: str) -> type[Attack]:
    if name not in ATTACKS:
        raise UnknownName("attack", name, ATTACKS)
    return ATTACKS[name]


def build_attack(name: str, *, preset: str, settings: Mapping[str, Any] | None = None) -> Attack:
    """As :func:`build_method`, for an attack."""
    cls = attack_class(name)
    built: Attack = _build(cls, name, _preset(cls, name, preset), settings)
    return built


def build_guard(text: str) -> Guard:
    """``NAME`` or ``NAME:option=value,option=value``. Raises as :func:`build_method`."""
    name, _, rest = text.partition(":")
    if name not in GUARDS:
        raise UnknownName("guard", name, GUARDS)
    built: Guard = _build(GUARDS[name], name, {}, parse_set(tuple(rest.split(",")) if rest else ()))
    return built


def _preset(cls: Any, name: str, preset: str) -> dict[str, Any]:
    if preset not in cls.presets:
        raise UnknownName(f"preset of {name}", preset, cls.presets)
    return dict(cls.presets[preset])


def _build(cls: Any, name: str, chosen: Mapping[str, Any], settings: Mapping[str, Any] | None) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in settings or {}:
        if key not in fields:
            raise UnknownName(f"option of {name}", key, fields)
    built = cls(**{key: _coerce(fields[key], value) for key, value in {**chosen, **(settings or {})}.items()})
    refuse_idle(built, settings or {})
    return built


def _coerce(field: dataclasses.Field[Any], value: Any) -> Any:
    kind = field.type if isinstance(field.type, str) else field.type.__name__
    name, given = field.name, value
    try:
        if kind == "bool":
            if isinstance(value, str):
                value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
            if not isinstance(value, bool):
                raise ValueError
        elif kind == "int":
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                raise ValueError
            value = int(value)
        elif kind == "float":
            value = float(value)
            if not math.isfinite(value):
                raise ValueError
        elif not isinstance(value, str):
            raise ValueError
    except (KeyError, ValueError, TypeError) as error:
        raise BadOption(f"option {name}={given!r} is not a {kind}; its default is {field.default!r}.") from error
    return value


def read_toml(path: str | Path) -> dict[str, Any]:
    """Options of a method as a flat TOML table; the key ``preset`` chooses the preset."""
    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadFile(f"cannot read the configuration {str(path)!r}: {error}.") from error
    nested = [k for k, v in table.items() if isinstance(v, dict | list)]
    if nested:
        raise BadOption(f"{str(path)!r}: {nested[0]!r} is a table or list; options are written as name = value at the top level.")
    return table


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


def describe(cls: type[Method] | type[Attack] | type[Guard]) -> list[dict[str, Any]]:
    """Name, type, default, meaning and source of every option, for help texts and docs."""
    return [
        {
            "name": f.name,
            "type": f.type if isinstance(f.type, str) else f.type.__name__,
            "default": f.default,
            "help": f.metadata["help"],
            "source": f.metadata["source"],
            "choices": f.metadata["choices"],
            "needs": f.metadata["needs"].replace("|", " or "),
        }
        for f in dataclasses.fields(cls)
    ]
