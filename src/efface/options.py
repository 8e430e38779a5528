"""Options of methods, attacks and guards: dataclass fields that know what they mean and which values they take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from .errors import BadOption, UnknownName


def option(
    default: Any, help: str, source: str, *, choices: tuple[str, ...] | None = None, low: float | None = None, needs: str = ""
) -> Any:
    """A hyper-parameter: default, meaning and where the default comes from. ``low`` is the smallest allowed value. ``needs`` says
    what other options it takes for this one to do anything: "name" (not 0, empty or false), "name=this|that" or "name!=this",
    several of them with " and "."""
    meta = {"help": help, "source": source, "choices": choices, "low": low, "needs": needs}
    return dataclasses.field(default=default, metadata=meta)


def check(options: Any) -> None:
    """Raises UnknownName or BadOption for a value that its field does not take, however it came there."""
    for field in dataclasses.fields(options):
        name, value, meta = field.name, getattr(options, field.name), field.metadata
        if meta.get("choices") and value not in meta["choices"]:
            raise UnknownName(f"value of {name}", str(value), meta["choices"])
        if meta.get("low") is not None and value < meta["low"]:
            raise BadOption(f"option {name}={value!r} is below its smallest value {meta['low']!r}.")


def refuse_idle(options: Any, names: Iterable[str]) -> None:
    """Raises BadOption for the first of the named options that does nothing beside the others: somebody asked for it."""
    fields = {f.name: f for f in dataclasses.fields(options)}
    for name in names:
        for need in filter(None, fields[name].metadata["needs"].split(" and ")):
            key, accepted, values = _parsed(need)
            value = getattr(options, key)
            if (str(value) in values) != accepted:
                raise BadOption(
                    f"{name}={getattr(options, name)!r} does nothing with {key}={value}; it belongs to "
                    f"{need.replace('|', ' or ')}. Leave {name} out, or change {key}."
                )


def _parsed(need: str) -> tuple[str, bool, tuple[str, ...]]:
    """The other option, and whether it must be one of these values (as text) or none of them."""
    for sign, accepted in (("!=", False), ("=", True)):
        key, found, values = need.partition(sign)
        if found:
            return key, accepted, tuple(values.split("|"))
    return need, False, ("0", "0.0", "False", "")
