"""Closed-form edits as things to keep: four equal forms of one edit, and a state that concepts can be added to and taken from."""

from .attack import WayBack
from .forms import facts, filtered, folded, lora, pooled_readers, prompt_gram, save_lora, text_filter, to_patch
from .state import ConceptEdit

__all__ = [
    "ConceptEdit",
    "WayBack",
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
