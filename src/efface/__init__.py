"""efface erases concepts from text-to-image diffusion models, measures the erasure, and ships it as a small file.

The public names load what they need on first use, so that ``import efface`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attacks import ConceptInversion, UnlearnDiff
    from .edits import ConceptEdit
    from .errors import EffaceError
    from .guards import SAFREE, SLD, Negative
    from .lists.load import load_prompts
    from .methods import (
        AGE,
        AP,
        ESD,
        KPOP,
        L2,
        MACE,
        RAP,
        RECE,
        STEREO,
        TIME,
        TRCE,
        UCE,
        AdvUnlearn,
        ConceptAblation,
        Fixed,
        ForgetMeNot,
        Naive,
        Neutral,
        RAPAttack,
        RealEra,
    )
    from .models.load import load_model
    from .patches import Patch
    from .training.loop import Run

__version__ = "0.1.0"

_HOMES = {
    "apply": "verbs",
    "attack": "verbs",
    "bench": "verbs",
    "certify": "verbs",
    "stack": "verbs",
    "card": "verbs",
    "load_patch": "verbs",
    "push": "verbs",
    "query": "verbs",
    "leaderboard": "verbs",
    "damage": "verbs",
    "agreement": "verbs",
    "distance": "verbs",
    "erase": "verbs",
    "estimate": "verbs",
    "evaluate": "verbs",
    "export": "verbs",
    "import_patch": "verbs",
    "report": "verbs",
    "sample": "verbs",
    "study": "verbs",
    "suite": "verbs",
    "survive": "verbs",
    "verify": "verbs",
    "sign": "patches.signature",
    "load_model": "models.load",
    "load_prompts": "lists",
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
    "L2": "methods",
    "RAP": "methods",
    "Fixed": "methods",
    "Naive": "methods",
    "Neutral": "methods",
    "RAPAttack": "methods",
    "Exhaustive": "preservation.exhaustive",
    "Gumbel": "preservation.gumbel",
    "PGD": "preservation.pgd",
    "Random": "preservation.uniform",
    "Student": "training.samplers",
    "Frozen": "training.samplers",
    "Pool": "training.samplers",
    "Noised": "training.samplers",
    "Harvest": "training.samplers",
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
    "L2",
    "MACE",
    "PGD",
    "RAP",
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
    "Exhaustive",
    "Fixed",
    "ForgetMeNot",
    "Frozen",
    "Gumbel",
    "Harvest",
    "Naive",
    "Negative",
    "Neutral",
    "Noised",
    "Patch",
    "Pool",
    "RAPAttack",
    "Random",
    "RealEra",
    "Run",
    "Student",
    "UnlearnDiff",
    "__version__",
    "agreement",
    "apply",
    "attack",
    "bench",
    "card",
    "certify",
    "damage",
    "distance",
    "erase",
    "estimate",
    "evaluate",
    "export",
    "import_patch",
    "leaderboard",
    "load_model",
    "load_patch",
    "load_prompts",
    "push",
    "query",
    "report",
    "sample",
    "sign",
    "stack",
    "study",
    "suite",
    "survive",
    "verify",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name == "api":  # of the last release
        return import_module(".api", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'efface' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
