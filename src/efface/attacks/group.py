"""Ask for the target by the word for its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .textual import Textual


@dataclass(frozen=True, kw_only=True)
class GroupWord(Textual):
    """Ask with the word for the target's group, such as "animal" for "dog"; see :class:`Textual`.
    Tier T0.

    Such a word rarely means the target alone, so only attempts count for which the original model
    shows the target.
    """

    name: ClassVar[str] = "group"
    summary: ClassVar[str] = "ask for the target by the word for its group"
    paper: ClassVar[str] = "ours"
