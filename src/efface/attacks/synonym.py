"""Ask for the target by another name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Called
from .textual import Textual, reworded


@dataclass(frozen=True, kw_only=True)
class Synonym(Textual):
    """Put a synonym in the place of the target's name, the rest of the prompt unchanged; see
    :class:`Textual`. Tier T0."""

    name: ClassVar[str] = "synonym"
    summary: ClassVar[str] = "ask for the target by another name"
    paper: ClassVar[str] = "ours"

    def prompts(self, called: Called, prompt: str) -> list[str]:
        return [reworded(prompt, called.word, words) for words in called.wordings[self.name]]
