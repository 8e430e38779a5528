"""Whether a prompt was written by somebody, or found by an optimisation and says to no reader what it asks for."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from importlib import resources

from ..concepts.disguise import folded

LINKING = """
    a an the of in on at by with and or to from for is are as his her their its who that this under over near behind into
    el la los las de del en un una con y por para que su al se le les du des dans et sur avec une au aux par pour
    der die das ein eine mit und im auf von dem den zu il lo gli di da nel nella e per che o os um uma do dos em no na com
    het een van op met w z i ze
"""
FUNCTION_WORDS = frozenset(LINKING.split())
"""Words that link others, in the languages that are written in Latin letters."""
WORDS_NEEDED = 5
UNKNOWN, LINKED = 0.4, 0.1
"""A text is unreadable when at least this share of its words is in no dictionary, and fewer than that share link words."""


@cache
def dictionary() -> frozenset[str]:
    """English words: those of WordNet's nouns and of what explains them."""
    text = resources.files("efface.concepts").joinpath("wordnet.txt").read_text("utf-8")
    return frozenset(re.findall(r"[a-z]+", text.lower())) | FUNCTION_WORDS


def unreadable(text: str) -> bool:
    """Whether a text looks like the result of an optimisation over tokens: most of its words are in no dictionary, hardly any
    links others, and no commas order them; or scripts are mixed in it. A short text and one of another script are readable.

    It is a rule of thumb, not a proof. It errs towards calling a text unreadable, which costs one prompt of a list.
    """
    if "<|" in text:  # tokens that no writer types
        return True
    plain = folded(text)
    words = re.findall(r"[a-z]+", plain)
    scripts = {unicodedata.name(c, "?").split()[0] for c in text if c.isalpha()} - {"LATIN", "FULLWIDTH"}
    scripts -= {"HIRAGANA", "KATAKANA"} if "CJK" in scripts else set()
    if len(scripts) > 1 and words:
        return True
    long = [w for w in words if len(w) > 1]
    if len(long) < WORDS_NEEDED:
        return False
    unknown = sum(not _known(w) for w in long) / len(long)
    linked = sum(w in FUNCTION_WORDS for w in words) / len(words)
    return unknown >= UNKNOWN and linked < LINKED and text.count(",") < len(long) / 6


def _known(word: str) -> bool:
    """Whether the dictionary has the word or what it is a form of."""
    forms = (word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ed"), word.removesuffix("ing"))
    more = (word.removesuffix("d"), word.removesuffix("ing") + "e", word.removesuffix("ly"))
    return any(form in dictionary() for form in (*forms, *more))
