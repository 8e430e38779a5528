"""The verbs under the name of the last release. Use the functions of ``efface`` itself, or :mod:`efface.verbs`."""

from __future__ import annotations

import warnings

from .models.load import load_model
from .verbs import attack, damage, erase, evaluate, export, import_patch, report, sample, study
from .verbs.attack import attack_units
from .verbs.erase import request_for
from .verbs.subject import judge_for, suite_for

__all__ = [
    "attack",
    "attack_units",
    "damage",
    "erase",
    "evaluate",
    "export",
    "import_patch",
    "judge_for",
    "load_model",
    "report",
    "request_for",
    "sample",
    "study",
    "suite_for",
]

warnings.warn("efface.api is called efface.verbs now.", FutureWarning, stacklevel=2)
