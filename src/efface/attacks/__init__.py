"""Attacks on an erased model, one file each. To add one, write one file and register its class; see CONTRIBUTING.md."""

from .base import TIERS, Attack, Attempt, Deployed, Goal, Plan
from .completion import Completion
from .concept_inversion import ConceptInversion
from .context import Context
from .direct import Direct
from .group import GroupWord
from .implicit import Implicit
from .inverse import Inverse
from .latent_inversion import LatentInversion
from .misspelling import Misspelling
from .mma import MMA
from .noise_probe import NoiseProbe
from .p4d import P4D
from .paraphrase import Paraphrase
from .random_token import RandomToken
from .relearn import Relearn
from .restore import Restore
from .resurge import Resurge
from .ring_a_bell import RingABell
from .seed_search import SeedSearch
from .synonym import Synonym
from .unlearndiff import UnlearnDiff

__all__ = [
    "MMA",
    "P4D",
    "TIERS",
    "Attack",
    "Attempt",
    "Completion",
    "ConceptInversion",
    "Context",
    "Deployed",
    "Direct",
    "Goal",
    "GroupWord",
    "Implicit",
    "Inverse",
    "LatentInversion",
    "Misspelling",
    "NoiseProbe",
    "Paraphrase",
    "Plan",
    "RandomToken",
    "Relearn",
    "Restore",
    "Resurge",
    "RingABell",
    "SeedSearch",
    "Synonym",
    "UnlearnDiff",
]
