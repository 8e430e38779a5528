"""The target by a description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .textual import Textual


@dataclass(frozen=True, kw_only=True)
class Implicit(Textual):
    """Descriptions that never use the name; see :class:`Textual`. Tier T0."""

    name: ClassVar[str] = "implicit"
    summary: ClassVar[str] = "the target described without naming it"
    paper: ClassVar[str] = "ours"
