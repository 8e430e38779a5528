"""Words that somebody may have disguised: how a table of words is looked for in a text.

A text is read in several ways, and a word counts as found when one of them shows it:

1. as it is, without accents, case, and characters that have no width, and with letters of one look as one letter (Cyrillic,
   Greek, full width, small capitals, letters in circles);
2. with digits and signs as the letters that they stand for (``k1d``, ``ch!ld``);
3. with single letters that spaces or signs keep apart joined (``c h i l d``, ``c-h-i-l-d``);
4. with two or three neighbouring pieces joined (``chi ld``, ``un-der-age``);
5. with repeated letters as one (``giiirl``);
6. with a sign in the place of a letter (``ch*ld``).

Reading too much into a text is the safer mistake here: such tables decide what is left out, never what is drawn.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache

UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
"""Characters without width: soft hyphen, joiners, byte order mark."""
LOOK_ALIKE = {
    **dict(zip("авекмнорстухісјԛԝѕһԁӏղгпи", "abekmhopctyxicjqwshdlnrnu", strict=True)),  # Cyrillic, and one Armenian letter
    **dict(zip("αβγεζηικμνορτυχωϲ", "abyeznikmvoptuxwc", strict=True)),  # Greek
    **dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz", strict=True)),  # small capitals
    **dict(zip("ıøłđħŧɑɡɩƙℓ", "ioldhtagikl", strict=True)),  # Latin letters that have no plain form
    "æ": "ae",
    "œ": "oe",
    "ـ": "",  # stretches an Arabic word
    "ة": "ه",
    "ى": "ي",
    "ک": "ك",
    "ی": "ي",
}
CIRCLED = {chr(start + i): chr(97 + i) for start in (0x1F150, 0x1F170, 0x1F1E6) for i in range(26)}
"""Letters in dark circles and squares, and those of flags, for which Unicode has no plain form."""
FOLD = {ord(k): v for k, v in {**LOOK_ALIKE, **CIRCLED}.items()}
LEET = str.maketrans(dict(zip("0134578962@$€|!+", "oleastbgbzaselit", strict=True)))
OTHER_LEET = str.maketrans(dict(zip("0134578962@$€|!+", "oieastbggzaseiit", strict=True)))
"""What digits and signs stand for. A 1 is an l as often as an i."""
SIGNS = "@$€|!+"
MASKS = "*#%?•·_~"
WIDE = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Scripts that put no space between words, or particles behind them."""


@lru_cache(maxsize=4096)
def folded(text: str) -> str:
    """The text in small letters, without accents and invisible characters, with letters of one look as one."""
    text = unicodedata.normalize("NFKD", text.translate(FOLD)).translate(UNSEEN)
    kept = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf")).casefold().translate(FOLD)
    kept = "".join(str(unicodedata.digit(c)) if c.isdigit() and not c.isascii() else c for c in kept)
    return unicodedata.normalize("NFC", kept)


class Words:
    """A table of words in several languages, found in texts that may hide them.

    The table holds words by language. ``word`` is a word of its own, ``word*`` the beginning of one, ``*word*`` any part of one.
    Words of scripts without spaces are looked for anywhere.
    """

    def __init__(self, table: Mapping[str, str]) -> None:
        self.language: dict[str, str] = {}
        whole: list[str] = []
        starts, parts, wide = list[str](), list[str](), list[str]()
        for language, words in table.items():
            for word in words.split():
                bare = folded(word.strip("*"))
                self.language.setdefault(bare, language)
                anywhere = bool(re.search(f"[{WIDE}]", bare)) or (word.startswith("*") and word.endswith("*"))
                if re.search(f"[{WIDE}]", bare):
                    wide.append(bare)
                (parts if anywhere else starts if word.endswith("*") else whole).append(bare)
        self._whole, self._known = frozenset(whole), "\n".join([*whole, *starts, *parts])
        self._squeezed = {_squeezed(w): w for w in [*whole, *starts, *parts]}
        self._starts, self._parts = _any(starts, "^"), _any(parts)
        self._wide, self._spaced = _any(wide), _any([w for w in [*whole, *starts, *parts] if len(w) > 2])
        self._joined = frozenset(w for w in [*whole, *starts, *parts] if len(w) > 3) | {"kid", "boy"} & set(whole)

    def find(self, text: str) -> str | None:
        """A word of the table that the text shows, as the table has it; None where it shows none."""
        plain = folded(text)
        for token in _tokens(plain):
            if found := self._token(token):
                return found
        bare = re.sub(r"[\W_]+", "", plain)
        for reading in (bare, re.sub(r"\s+", "", plain)):
            if self._wide and (hit := self._wide.search(reading)):
                return hit.group()
        return self._hidden(plain)

    def _token(self, token: str) -> str | None:
        """The word that a run of letters shows."""
        if token in self._whole:
            return token
        if self._starts and (hit := self._starts.match(token)):
            return hit.group()
        if self._parts and (hit := self._parts.search(token)):
            return hit.group()
        if re.search(r"(.)\1\1", token):
            for reading in (re.sub(r"(.)\1{2,}", r"\1\1", token), re.sub(r"(.)\1{2,}", r"\1", token)):
                if found := self._token(reading):
                    return found
            return self._squeezed.get(_squeezed(token))
        return None

    def _hidden(self, plain: str) -> str | None:
        """The word that stands behind signs, spaces or missing letters."""
        for chunk in plain.split():
            if any(c in MASKS for c in chunk[1:]) and (found := self._masked(chunk)):
                return found
            if any(c.isdigit() or c in SIGNS for c in chunk) and any(c.isalpha() for c in chunk):
                core = chunk.strip("!|+")
                for table in (LEET, OTHER_LEET):
                    for token in _tokens(core.translate(table)):
                        if found := self._token(token):
                            return found
        for table in (LEET, OTHER_LEET):
            pieces = [t.translate(table) for t in re.findall(r"[^\W\d_]+|[\d@$€]|(?<=\S)[!|](?=\S)", plain)]
            if found := self._pieces(pieces):
                return found
        return self._pieces(_tokens(plain))

    def _masked(self, chunk: str) -> str | None:
        """The word of the table that fits a chunk in which signs stand for one letter each."""
        for part in re.findall(rf"[^\W_](?:[^\W_]|[{re.escape(MASKS)}])*[^\W_]", chunk):
            letters = sum(c.isalpha() for c in part)
            if 3 <= len(part) < 2 * letters + 1 and any(c in MASKS for c in part):
                pattern = "".join(r"[^\W\d_]" if c in MASKS else re.escape(c) for c in part)
                if hit := re.search(rf"(?m)^{pattern}$", self._known):
                    return hit.group()
        return None

    def _pieces(self, pieces: list[str]) -> str | None:
        """The word that neighbouring pieces make together: any number of single letters, or two or three pieces."""
        run = ""
        for piece in [*pieces, ""]:
            if len(piece) == 1:
                run += piece
                continue
            if len(run) > 2 and self._spaced and (hit := self._spaced.search(run)):
                return hit.group()
            run = ""
        for n in (2, 3):
            for i in range(len(pieces) - n + 1):
                joined = "".join(pieces[i : i + n])
                for word in (joined, joined[:-1] if joined.endswith("s") else joined):
                    if word in self._joined:
                        return word
        return None


def _tokens(text: str) -> list[str]:
    """The runs of letters of a folded text."""
    return re.findall(r"[^\W\d_]+", text)


def _squeezed(word: str) -> str:
    return re.sub(r"(.)\1+", r"\1", word)


def _any(words: list[str], start: str = "") -> re.Pattern[str] | None:
    """Any of the words, the longest first; None where there are none."""
    ordered: Iterator[str] = (re.escape(w) for w in sorted(set(words), key=len, reverse=True))
    return re.compile(f"{start}(?:{'|'.join(ordered)})") if words else None
