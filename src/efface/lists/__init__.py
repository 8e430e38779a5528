"""Prompt lists that other people published, read from the user's disk or from the Hub. None of them is shipped."""

from .load import PromptList, load_prompts
from .schemas import Prompt

__all__ = ["Prompt", "PromptList", "load_prompts"]
