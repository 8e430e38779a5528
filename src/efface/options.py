"""Options of methods, attacks and guards: dataclass fields that know what they mean and which values they take.

Some options are *parts*: objects with options of their own, such as AP's search or the source of z_t. A part is chosen by the
name of its kind, and its options are written with a dot: ``search=gumbel``, ``search.tau=2``.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from .errors import BadOption, UnknownName

S = TypeVar("S", bound="Settings")


def option(
    default: Any, help: str, source: str, *, choices: tuple[str, ...] | None = None, low: float | None = None, needs: str = ""
) -> Any:
    """A hyper-parameter: its default, its meaning, and where the default comes from.

    ``low`` is the smallest value that is allowed. ``needs`` names the other options without which this one has no effect:
    "name" (not 0, empty or false), "name=this|that" or "name!=this", several of them joined by " and ".
    """
    meta = {"help": help, "source": source, "choices": choices, "low": low, "needs": needs}
    return dataclasses.field(default=default, metadata=meta)


def part(default: Settings, help: str, source: str, *, kinds: tuple[type[Settings], ...]) -> Any:
    """An option whose value is an object with options of its own, of one of these kinds."""
    meta = {"help": help, "source": source, "choices": None, "low": None, "needs": "", "kinds": {k.name: k for k in kinds}}
    return dataclasses.field(default=default, metadata=meta)


class Assembling(abc.ABCMeta):
    """Lets a class of options be called with the spellings of the command line beside the plain keyword arguments.

    ``AP(search="random")``, ``AP(**{"search.tau": 2.0})`` and names of an earlier release all give the object that
    ``AP(search=Random())`` and ``AP(search=Gumbel(tau=2.0))`` give. What was written down and has no effect is refused.
    """

    def __call__(cls: type[S], **settings: Any) -> S:  # type: ignore[misc]
        if settings.keys() == {f.name for f in dataclasses.fields(cls)}:  # dataclasses.replace: nobody wrote these down
            return assembled(cls, settings, {})
        return assembled(cls, {}, settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(metaclass=Assembling):
    """Abstract. An immutable set of options, checked when it is made, however its values came here."""

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Named sets of options, written as on the command line."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Option names of an earlier release -> names of today."""

    def __post_init__(self) -> None:
        """Raises UnknownName or BadOption for a value that its field does not take. A subclass with more to check calls this."""
        for field in dataclasses.fields(self):
            name, value, meta = field.name, getattr(self, field.name), field.metadata
            if meta.get("choices") and value not in meta["choices"]:
                raise UnknownName(f"value of {name}", str(value), meta["choices"])
            if meta.get("kinds") and not isinstance(value, tuple(meta["kinds"].values())):
                raise BadOption(f"option {name}={value!r} is none of {', '.join(meta['kinds'])}.")
            if meta.get("low") is not None and value < meta["low"]:
                raise BadOption(f"option {name}={value!r} is below its smallest value {meta['low']!r}.")

    @classmethod
    def preset(cls: type[S], preset: str, **settings: Any) -> S:
        """The options of a preset, with ``settings`` in their place. Raises UnknownName for a preset that does not exist."""
        if preset not in cls.presets:
            raise UnknownName(f"preset of {cls.name}", preset, cls.presets)
        return assembled(cls, cls.presets[preset], settings)

    def plain(self) -> dict[str, Any]:
        """Every option as it is written on the command line, for cards and fingerprints."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Settings):
                found[field.name] = value.name
                found |= {f"{field.name}.{key}": v for key, v in value.plain().items()}
            else:
                found[field.name] = value
        return found


def assembled(cls: type[S], base: Mapping[str, Any], settings: Mapping[str, Any]) -> S:
    """An object of options from two layers: ``base``, such as a preset, and what somebody wrote down on top of it.

    Values may be strings. Raises UnknownName for an option that does not exist, BadOption for a value that is not taken, and for
    a setting of ``settings`` that has no effect beside the others.
    """
    layers = modern(cls, base), modern(cls, settings)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if "kinds" in field.metadata:
            values[field.name] = _part(field, cls.name, *layers)
        else:
            for layer in layers:
                if field.name in layer:
                    values[field.name] = coerced(field, layer[field.name])
    built: S = type.__call__(cls, **values)
    refuse_idle(built, [name for name in layers[1] if "." not in name])
    return built


def modern(cls: type[Settings], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under today's names. Warns of a name of an earlier release; raises UnknownName for one that never was."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    found: dict[str, Any] = {}
    for given, value in settings.items():
        name = cls.renamed.get(given, given)
        if name != given:
            warnings.warn(f"{cls.name}: the option {given} is called {name} now.", FutureWarning, stacklevel=5)
        if name in found:
            raise BadOption(f"option {name} of {cls.name} is given twice (once as {given}); leave one of the two out.")
        head, dot, rest = name.partition(".")
        if head not in fields or (dot and not ("kinds" in fields[head].metadata and rest)):
            raise UnknownName(f"option of {cls.name}", given, known(cls))
        found[name] = value
    return found


def known(cls: type[Settings]) -> list[str]:
    """Names of all options, those of every kind of part among them."""
    names = []
    for field in dataclasses.fields(cls):
        names.append(field.name)
        for kind in field.metadata.get("kinds", {}).values():
            names += [f"{field.name}.{f.name}" for f in dataclasses.fields(kind)]
    return list(dict.fromkeys(names))


def _part(field: dataclasses.Field[Any], owner: str, base: Mapping[str, Any], written: Mapping[str, Any]) -> Settings:
    """The part of a field. Another kind keeps the values of the layer below that it has options for."""
    kinds: Mapping[str, type[Settings]] = field.metadata["kinds"]
    default: Any = field.default
    all_parts = [f"{field.name}.{f.name}" for k in kinds.values() for f in dataclasses.fields(k)]
    kind, values = type(default), _chosen(default)
    for layer in (base, written):
        given = layer.get(field.name, kind)
        if isinstance(given, Settings):
            kind, values = type(given), _chosen(given)
        elif isinstance(given, str):
            if given not in kinds:
                raise UnknownName(f"{field.name} of {owner}", given, kinds)
            kind = kinds[given]
        elif given is not kind:
            raise BadOption(f"option {field.name}={given!r} is none of {', '.join(kinds)}.")
        inner = {name.partition(".")[2]: value for name, value in layer.items() if name.startswith(f"{field.name}.")}
        if layer is base:
            values |= inner
    names = {f.name for f in dataclasses.fields(kind)}
    for name in inner:
        if f"{field.name}.{name}" not in all_parts:
            raise UnknownName(f"option of {owner}", f"{field.name}.{name}", all_parts)
        belongs = [k.name for k in kinds.values() if name in {f.name for f in dataclasses.fields(k)}]
        if belongs and name not in names:
            raise BadOption(
                f"{field.name}.{name} has no effect with {field.name}={kind.name}; it belongs to {' or '.join(belongs)}. "
                f"Leave {field.name}.{name} out, or change {field.name}."
            )
    made: Settings = assembled(kind, {name: value for name, value in values.items() if name in names}, inner)
    return made


def _chosen(part: Settings) -> dict[str, Any]:
    """The values of a part that are not its kind's defaults."""
    return {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if getattr(part, f.name) != f.default}


def coerced(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value as the field's type, from that type or from a string. Raises BadOption for any other."""
    kind = field.type if isinstance(field.type, str) else field.type.__name__
    given = value
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
            if isinstance(value, bool):
                raise ValueError
            value = float(value)
            if not math.isfinite(value):
                raise ValueError
        elif kind == "str" and not isinstance(value, str):
            raise ValueError
    except (KeyError, ValueError, TypeError) as error:
        raise BadOption(f"option {field.name}={given!r} is not a {kind}; its default is {field.default!r}.") from error
    return value


def refuse_idle(options: Settings, names: Iterable[str]) -> None:
    """Raises BadOption for the first of the named options that has no effect beside the others: somebody asked for it."""
    fields = {f.name: f for f in dataclasses.fields(options)}
    for name in names:
        for need in filter(None, fields[name].metadata.get("needs", "").split(" and ")):
            key, accepted, values = _parsed(need)
            value = getattr(options, key)
            value = value.name if isinstance(value, Settings) else value
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


def described(cls: type[Settings], prefix: str = "") -> list[dict[str, Any]]:
    """Name, type, default, meaning and source of every option, for help texts and pages; those of parts follow their part."""
    rows = []
    for f in dataclasses.fields(cls):
        kinds = f.metadata.get("kinds")
        rows.append(
            {
                "name": f"{prefix}{f.name}",
                "type": f.type if isinstance(f.type, str) else f.type.__name__,
                "default": f.default.name if kinds else f.default,
                "help": f.metadata.get("help", ""),
                "source": f.metadata.get("source", ""),
                "choices": tuple(kinds) if kinds else f.metadata.get("choices"),
                "needs": f.metadata.get("needs", "").replace("|", " or "),
            }
        )
        for kind in (kinds or {}).values():
            used = f.default if type(f.default) is kind else None
            for row in described(kind, f"{prefix}{f.name}."):
                inner = row["name"].rpartition(".")[2]
                row["default"] = getattr(used, inner) if used is not None else row["default"]
                row["needs"] = " and ".join(filter(None, [f"{f.name}={kind.name}", row["needs"]]))
                rows.append(row)
    return rows
