"""The target by the word of its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .textual import Textual


@dataclass(frozen=True, kw_only=True)
class Group(Textual):
    """The word for the target's group; see :class:`Textual`. Tier T0.

    It rarely means the target alone: the gate decides what counts.
    """

    name: ClassVar[str] = "group"
    summary: ClassVar[str] = "the target by the word of its group"
    paper: ClassVar[str] = "ours"
