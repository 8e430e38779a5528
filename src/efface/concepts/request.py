"""What the user wants erased, checked before any compute is spent."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BadRequest

UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
"""Characters without width: soft hyphen, joiners, byte order mark."""
PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|[^\s\w]+|_+")
"""What CLIP's tokenizer takes a text apart into before it looks for words: letters, single digits, runs of punctuation."""


def normalised(name: str) -> str:
    """Names that the tokenizer cannot tell apart are one: CLIP's tokenizer composes accents, lowers case, and drops the spaces
    between words, single digits and punctuation. Letters of one look (NFKC: ligatures, full width) count as one too."""
    text = unicodedata.normalize("NFKC", name).translate(UNSEEN).lower()
    return " ".join(PIECES.findall(unicodedata.normalize("NFC", text)))


def names_of(given: Iterable[str], what: str) -> tuple[str, ...]:
    """Names as they were given; a string is one name. Raises BadRequest for anything that is no text."""
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    wrong = [n for n in names if not isinstance(n, str)]
    if wrong:
        raise BadRequest(f"{what} takes names, got {wrong[0]!r}.")
    return names


@dataclass(frozen=True)
class EraseRequest:
    """``targets`` are erased, ``anchor`` is what they are mapped to (may be ""), ``preserve`` must not change."""

    targets: tuple[str, ...]
    anchor: str = ""
    preserve: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", names_of(self.targets, "targets"))
        object.__setattr__(self, "preserve", names_of(self.preserve, "preserve"))
        if not self.targets:
            raise BadRequest("no target: name at least one concept to erase (--target NAME).")
        seen: set[str] = set()
        for name in self.targets:
            if not normalised(name):
                raise BadRequest(f"the target {name!r} is empty; erasing the empty prompt would erase everything.")
            if normalised(name) in seen:
                raise BadRequest(f"the target {name!r} is named twice (case, spaces and the form of accents do not count).")
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
