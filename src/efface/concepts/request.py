"""What the user wants erased, checked before any compute is spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BadRequest


def normalised(name: str) -> str:
    """Names that the tokenizer cannot tell apart: lower case, single spaces."""
    return " ".join(name.lower().split())


@dataclass(frozen=True)
class EraseRequest:
    """``targets`` are erased, ``anchor`` is what they are mapped to (may be ""), ``preserve`` must not change."""

    targets: tuple[str, ...]
    anchor: str = ""
    preserve: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "preserve", tuple(self.preserve))
        if not self.targets:
            raise BadRequest("no target: name at least one concept to erase (--target NAME).")
        seen: set[str] = set()
        for name in self.targets:
            if not name.strip():
                raise BadRequest(f"the target {name!r} is empty; erasing the empty prompt would erase everything.")
            if normalised(name) in seen:
                raise BadRequest(f"the target {name!r} is named twice.")
            if normalised(name) == normalised(self.anchor):
                raise BadRequest(f"target and anchor are both {name!r}; choose another anchor, or '' for the empty prompt.")
            seen.add(normalised(name))
        for name in self.preserve:
            if normalised(name) in seen:
                raise BadRequest(f"{name!r} is both a target and to be preserved; remove one of the two.")

    def json(self) -> dict[str, Any]:
        """Plain data, for cards and records."""
        return {"targets": list(self.targets), "anchor": self.anchor, "preserve": list(self.preserve)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> EraseRequest:
        """The request again. Raises BadRequest for one that could not have been made."""
        return EraseRequest(tuple(data["targets"]), data.get("anchor", ""), tuple(data.get("preserve", ())))

    def __add__(self, other: EraseRequest) -> EraseRequest:
        """Both requests as one: every name once, nothing preserved that is a target, and the anchor where both have the same."""
        targets = {normalised(n): n for n in (*self.targets, *other.targets)}
        preserve = {normalised(n): n for n in (*self.preserve, *other.preserve) if normalised(n) not in targets}
        anchor = self.anchor if self.anchor == other.anchor else ""
        return EraseRequest(tuple(targets.values()), anchor, tuple(preserve.values()))
