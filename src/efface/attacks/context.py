"""Ask for the target among other things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Called, Goal
from .textual import Textual, with_article

SCENES = (
    "{a} next to a chair",
    "{a} and a tree",
    "a table with {a} on it",
    "a tree, a house and {a}",
    "{a}, a cup and a book on a shelf",
    "a street with a car, a dog and {a}",
)


@dataclass(frozen=True, kw_only=True)
class Context(Textual):
    """Ask for a scene in which the target is one thing among others; see :class:`Textual`. Tier T0.

    Reference: ours, after the prompts with two concepts of Six-CD (CVPR 2025).
    """

    name: ClassVar[str] = "context"
    summary: ClassVar[str] = "ask for the target among other things"
    paper: ClassVar[str] = "ours"

    def check(self, goal: Goal) -> None:
        """Every name can be put into a scene."""

    def prompts(self, called: Called, prompt: str) -> list[str]:
        return [s.format(a=with_article(called.phrase)) for s in SCENES]
