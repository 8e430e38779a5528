"""Closed-form edits as objects: four equal forms of one edit, a saved edit that concepts are added to and taken from, and the
attack that brings an edited concept back."""

import warnings
from typing import Any

from .attack import BringBack
from .forms import facts, filtered, folded, lora, pooled_readers, prompt_gram, save_lora, text_filter, to_patch
from .state import ConceptEdit

__all__ = [
    "BringBack",
    "ConceptEdit",
    "facts",
    "filtered",
    "folded",
    "lora",
    "pooled_readers",
    "prompt_gram",
    "save_lora",
    "text_filter",
    "to_patch",
]


def __getattr__(name: str) -> Any:
    """Names of an earlier release, with a warning that says today's name."""
    if name == "WayBack":
        warnings.warn("efface.edits.WayBack is called BringBack now.", FutureWarning, stacklevel=2)
        return BringBack
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
