"""Ask for the target by a description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .textual import Textual


@dataclass(frozen=True, kw_only=True)
class Implicit(Textual):
    """Ask with descriptions of the target that never use its name; see :class:`Textual`. Tier T0."""

    name: ClassVar[str] = "implicit"
    summary: ClassVar[str] = "ask for the target by a description without its name"
    paper: ClassVar[str] = "ours"
