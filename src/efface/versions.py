"""Versions of everything a result depends on."""

from __future__ import annotations

import platform
from importlib import metadata


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("efface", "torch", "diffusers", "transformers", "safetensors"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a source checkout that was never installed
            found[package] = "not installed"
    return found
