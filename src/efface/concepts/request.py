"""What the user wants erased, checked before any compute is spent."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BadRequest
from .disguise import UNSEEN
from .sensitive import refuse_minors

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


OBJECT, STYLE, CATEGORY, ATTRIBUTE, MIXED = "object", "style", "category", "attribute", "mixed"
KINDS = {
    OBJECT: "a thing, an animal, a person or a character, which prompts call by its name",
    STYLE: "how everything is drawn, such as the hand of an artist; the object of the prompt must stay",
    CATEGORY: "all objects of one kind, such as all weapons, which prompts mostly ask for without the word for them",
    ATTRIBUTE: "a property that objects can have, such as a colour or an expression; the object must stay",
}
"""What a target can be."""


@dataclass(frozen=True)
class EraseRequest:
    """``targets`` are erased, ``anchor`` is what they are mapped to (may be ""), ``preserve`` must not change.

    ``targets`` are the texts that methods erase. They are the names that were asked for, except for a category: it is erased by
    the names of all its members, and ``of`` holds its own name. ``kind`` is one of :data:`KINDS`, or "mixed" for the sum of two
    requests of different kinds.
    """

    targets: tuple[str, ...]
    anchor: str = ""
    preserve: tuple[str, ...] = ()
    kind: str = OBJECT
    of: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", names_of(self.targets, "targets"))
        object.__setattr__(self, "of", names_of(self.of, "of"))
        if self.kind not in (*KINDS, MIXED):
            raise BadRequest(f"a target is one of {', '.join(KINDS)}, not {self.kind!r}.")
        object.__setattr__(self, "preserve", names_of(self.preserve, "preserve"))
        if not self.targets:
            raise BadRequest("no target: name at least one concept to erase (--target NAME).")
        refuse_minors((*self.targets, *self.of, self.anchor, *self.preserve), "the request")
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

    @property
    def asked(self) -> tuple[str, ...]:
        """The names that were asked for: the category, where ``targets`` are its members."""
        return self.of or self.targets

    def json(self) -> dict[str, Any]:
        """Plain data, for cards and records. A request for objects has no word of kinds, as in files of earlier versions."""
        plain = {"targets": list(self.targets), "anchor": self.anchor, "preserve": list(self.preserve)}
        return plain | ({} if self.kind == OBJECT else {"kind": self.kind}) | ({"of": list(self.of)} if self.of else {})

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> EraseRequest:
        """The request again. Raises BadRequest for one that could not have been made."""
        kind, of = data.get("kind", OBJECT), tuple(data.get("of", ()))
        return EraseRequest(tuple(data["targets"]), data.get("anchor", ""), tuple(data.get("preserve", ())), kind, of)

    def __add__(self, other: EraseRequest) -> EraseRequest:
        """Both requests as one: every name once, nothing preserved that is a target, and the anchor and the kind where both have
        the same."""
        targets = {normalised(n): n for n in (*self.targets, *other.targets)}
        preserve = {normalised(n): n for n in (*self.preserve, *other.preserve) if normalised(n) not in targets}
        anchor = self.anchor if self.anchor == other.anchor else ""
        kind = self.kind if self.kind == other.kind else MIXED
        of = tuple(dict.fromkeys((*self.asked, *other.asked))) if self.of or other.of else ()
        return EraseRequest(tuple(targets.values()), anchor, tuple(preserve.values()), kind, of)
