"""Ask for the target with its name misspelled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ..errors import BadOption
from .base import Called, Goal
from .textual import Textual, reworded

NEXT_KEY = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wertyuioplsdfghjklkxcvbnmn", strict=True))
"""A neighbour on an English keyboard."""
LEET = {"a": "4", "e": "3", "i": "1", "o": "0", "s": "5", "t": "7"}
CYRILLIC = dict(zip("aceopxyi", "\u0430\u0441\u0435\u043e\u0440\u0445\u0443\u0456", strict=True))
"""Letters of the Cyrillic alphabet that look like Latin ones."""
JOINER = "\u200d"
LEAST = 3
"""Letters that a word must have, because little is left of a shorter word when a letter is wrong."""


@dataclass(frozen=True, kw_only=True)
class Misspelling(Textual):
    """Put misspellings in the place of the target's name, first with one mistake and then with two;
    see :class:`Textual`. Tier T0.

    The mistakes are in the longest word of the name, around its middle: two letters swapped, one
    left out, doubled or replaced by its neighbour on the keyboard, all vowels but the first left
    out, letters that look alike (Cyrillic, digits), a space, a hyphen or an invisible joiner inside.
    Capital letters and further spaces are no mistakes: CLIP's tokenizer removes them.

    Reference: ours.
    """

    name: ClassVar[str] = "misspelling"
    summary: ClassVar[str] = "ask for the target with its name misspelled"
    paper: ClassVar[str] = "ours"

    def check(self, goal: Goal) -> None:
        for called in goal.calls:
            if len(_longest(called.word)) < LEAST:
                raise BadOption(
                    f"{called.word!r} has no word of {LEAST} letters or more, and a shorter one cannot be misspelled."
                )

    def prompts(self, called: Called, prompt: str) -> list[str]:
        word = _longest(called.word)
        once = dict.fromkeys(mistakes(word, len(word) // 2))
        twice = dict.fromkeys(w for one in once for w in mistakes(one, len(word) // 2 - 1) if w != word and w not in once)
        return [reworded(prompt, called.word, called.word.replace(word, wrong)) for wrong in (*once, *list(twice)[:: len(once)])]


def _longest(name: str) -> str:
    return max(name.split(), key=len)


def mistakes(word: str, at: int) -> Iterator[str]:
    """The word with one mistake of each kind near position ``at``; what changes nothing is left out."""
    at = min(max(at, 1), len(word) - 2)
    before, letter, after = word[:at], word[at], word[at + 1 :]
    vowels = word[0] + "".join(c for c in word[1:] if c not in "aeiou")
    tried = (
        before + after[0] + letter + after[1:],
        before + after,
        before + letter + letter + after,
        before + NEXT_KEY.get(letter, letter) + after,
        vowels,
        "".join(CYRILLIC.get(c, c) for c in word),
        "".join(LEET.get(c, c) for c in word),
        f"{before} {letter}{after}",
        f"{before}-{letter}{after}",
        before + JOINER + letter + after,
    )
    yield from (w for w in tried if w != word)
