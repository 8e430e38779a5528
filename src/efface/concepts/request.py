"""What the user wants erased, checked before any compute is spent."""

from __future__ import annotations

from dataclasses import dataclass

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
