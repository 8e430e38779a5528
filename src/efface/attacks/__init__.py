"""Attacks on an erased model. To add one: write one file beside these and one import line here."""

from .base import TIERS, Attack, Attempt, Deployed, Goal, Plan
from .concept_inversion import ConceptInversion
from .direct import Direct
from .group import Group
from .implicit import Implicit
from .inverse import Inverse
from .random_token import RandomToken
from .seed_search import SeedSearch
from .synonym import Synonym
from .unlearndiff import UnlearnDiff

ATTACKS: dict[str, type[Attack]] = {
    cls.name: cls for cls in (Direct, Synonym, Group, Implicit, RandomToken, SeedSearch, UnlearnDiff, ConceptInversion, Inverse)
}

__all__ = [
    "ATTACKS",
    "TIERS",
    "Attack",
    "Attempt",
    "ConceptInversion",
    "Deployed",
    "Direct",
    "Goal",
    "Group",
    "Implicit",
    "Inverse",
    "Plan",
    "RandomToken",
    "SeedSearch",
    "Synonym",
    "UnlearnDiff",
]
