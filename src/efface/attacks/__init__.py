"""Attacks on an erased model, one file each. To add one, write one file and register its class; see CONTRIBUTING.md."""

from .base import TIERS, Attack, Attempt, Deployed, Goal, Plan
from .concept_inversion import ConceptInversion
from .direct import Direct
from .group import GroupWord
from .implicit import Implicit
from .inverse import Inverse
from .random_token import RandomToken
from .seed_search import SeedSearch
from .synonym import Synonym
from .unlearndiff import UnlearnDiff

__all__ = [
    "TIERS",
    "Attack",
    "Attempt",
    "ConceptInversion",
    "Deployed",
    "Direct",
    "Goal",
    "GroupWord",
    "Implicit",
    "Inverse",
    "Plan",
    "RandomToken",
    "SeedSearch",
    "Synonym",
    "UnlearnDiff",
]
