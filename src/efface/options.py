"""Options of methods, attacks and guards: dataclass fields that know what they mean and which values they take."""

from __future__ import annotations

import dataclasses
from typing import Any

from .errors import BadOption, UnknownName


def option(default: Any, help: str, source: str, *, choices: tuple[str, ...] | None = None, low: float | None = None) -> Any:
    """A hyper-parameter: default, meaning and where the default comes from. ``low`` is the smallest allowed value."""
    return dataclasses.field(default=default, metadata={"help": help, "source": source, "choices": choices, "low": low})


def check(options: Any) -> None:
    """Raises UnknownName or BadOption for a value that its field does not take, however it came there."""
    for field in dataclasses.fields(options):
        name, value, meta = field.name, getattr(options, field.name), field.metadata
        if meta.get("choices") and value not in meta["choices"]:
            raise UnknownName(f"value of {name}", str(value), meta["choices"])
        if meta.get("low") is not None and value < meta["low"]:
            raise BadOption(f"option {name}={value!r} is below its smallest value {meta['low']!r}.")
