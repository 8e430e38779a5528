"""The former home of the verbs, kept for one version: a name taken from here warns and says where it is now."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

PLACES = ("efface.verbs", "efface.verbs.erase", "efface.verbs.subject", "efface.verbs.cost")


def __getattr__(name: str) -> Any:
    for place in PLACES:
        home = import_module(place)
        if not name.startswith("_") and hasattr(home, name):
            warnings.warn(f"efface.api.{name} is {place}.{name} now; efface.api will go.", FutureWarning, stacklevel=2)
            return getattr(home, name)
    raise AttributeError(f"module 'efface.api' has no attribute {name!r}")
