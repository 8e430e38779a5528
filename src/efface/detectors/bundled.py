"""Weights that lie in an installed package: found without a network, and taken only when they are the file that was examined."""

from __future__ import annotations

import hashlib
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType

from ..errors import BadFile, BadOption


def package(name: str, detector: str, extra: str) -> ModuleType:
    """An optional package. Raises BadOption, with the command that installs it, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadOption(f"the detector {detector} needs the package {name}: pip install 'efface[{extra}]' ({error}).") from error


@cache
def verified(path: Path, sha256: str) -> Path:
    """The path, once the file's sha256 is the expected one. Raises BadFile for a file that is missing or another."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadFile(f"cannot read the detector's weights {path}: {error}. Reinstall the package they belong to.") from error
    if found != sha256:
        raise BadFile(
            f"the detector's weights {path} have the sha256 {found[:16]}..., not {sha256[:16]}...: they are not the file whose "
            "numbers are known. Reinstall the package in the version that efface names."
        )
    return path
