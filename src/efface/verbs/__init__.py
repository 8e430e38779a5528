"""The verbs: what efface does, one file each. The command line and notebooks call only these."""

from .agreement import agreement
from .apply import apply, stack
from .attack import ALL as ALL
from .attack import attack
from .bench import bench
from .card import card
from .certify import certify
from .damage import damage
from .distance import distance
from .erase import erase
from .estimate import estimate
from .evaluate import evaluate
from .export import export, import_patch
from .hub import load_patch, push
from .leaderboard import leaderboard
from .query import query
from .report import report
from .sample import sample
from .study import study
from .suite import suite
from .survive import survive
from .verify import verify

__all__ = [
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
    "load_patch",
    "push",
    "query",
    "report",
    "sample",
    "stack",
    "study",
    "suite",
    "survive",
    "verify",
]
