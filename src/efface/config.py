"""Method options from presets, TOML files and ``name=value`` pairs: one description, the method's own dataclass."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BadFile, BadOption, UnknownName
from .methods import METHODS, ROWS, Method


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

    Raises UnknownName for a method, preset or option that does not exist, BadOption for a value it does not take.
    """
    cls = method_class(name)
    if preset not in cls.presets:
        raise UnknownName(f"preset of {name}", preset, cls.presets)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    chosen = {**cls.presets[preset], **(cls.presets[name] if name in ROWS else {})}
    for key, value in (settings or {}).items():
        if key not in fields:
            raise UnknownName(f"option of {name}", key, fields)
        chosen[key] = value
    return cls(**{key: _coerce(fields[key], value) for key, value in chosen.items()})


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


def describe(cls: type[Method]) -> list[dict[str, Any]]:
    """Name, type, default, meaning and source of every option, for help texts and docs."""
    return [
        {
            "name": f.name,
            "type": f.type if isinstance(f.type, str) else f.type.__name__,
            "default": f.default,
            "help": f.metadata["help"],
            "source": f.metadata["source"],
            "choices": f.metadata["choices"],
        }
        for f in dataclasses.fields(cls)
    ]
