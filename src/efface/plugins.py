"""What installed packages register under the entry-point groups, and classes in files of the user's own.

A package registers a class under a group; ours stand in the same groups of our own ``pyproject.toml``. A class in a file of the
user's own is named ``path/to/file.py:Name``.
"""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from .errors import BadFile, PluginError, UnknownName

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
