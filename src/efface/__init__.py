"""efface erases concepts from text-to-image diffusion models, measures the erasure, and ships it as a small file.

The public names load what they need on first use, so that ``import efface`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import attack, erase, evaluate, export, import_patch, report, sample
    from .attacks import ConceptInversion, UnlearnDiff
    from .edits import ConceptEdit
    from .errors import EffaceError
    from .guards import SAFREE, SLD, Negative
    from .methods import (
        AGE,
        AP,
        ESD,
        KPOP,
        MACE,
        RECE,
        STEREO,
        TIME,
        TRCE,
        UCE,
        AdvUnlearn,
        ConceptAblation,
        ForgetMeNot,
        RealEra,
    )
    from .models.load import load_model
    from .patches import Patch
    from .training.loop import Run

__version__ = "0.1.0"

_HOMES = {
    "attack": "api",
    "erase": "api",
    "evaluate": "api",
    "export": "api",
    "import_patch": "api",
    "report": "api",
    "sample": "api",
    "load_model": "models.load",
    "Patch": "patches",
    "Run": "training",
    "EffaceError": "errors",
    "AGE": "methods",
    "AP": "methods",
    "AdvUnlearn": "methods",
    "ConceptAblation": "methods",
    "ESD": "methods",
    "ForgetMeNot": "methods",
    "KPOP": "methods",
    "MACE": "methods",
    "RECE": "methods",
    "RealEra": "methods",
    "STEREO": "methods",
    "TIME": "methods",
    "TRCE": "methods",
    "UCE": "methods",
    "ConceptEdit": "edits",
    "ConceptInversion": "attacks",
    "UnlearnDiff": "attacks",
    "Negative": "guards",
    "SAFREE": "guards",
    "SLD": "guards",
}

__all__ = [
    "AGE",
    "AP",
    "ESD",
    "KPOP",
    "MACE",
    "RECE",
    "SAFREE",
    "SLD",
    "STEREO",
    "TIME",
    "TRCE",
    "UCE",
    "AdvUnlearn",
    "ConceptAblation",
    "ConceptEdit",
    "ConceptInversion",
    "EffaceError",
    "ForgetMeNot",
    "Negative",
    "Patch",
    "RealEra",
    "Run",
    "UnlearnDiff",
    "__version__",
    "attack",
    "erase",
    "evaluate",
    "export",
    "import_patch",
    "load_model",
    "report",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'efface' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
