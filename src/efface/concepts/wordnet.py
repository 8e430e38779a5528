"""What WordNet says of a name: other names, a description, and what is like it or unlike it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from .request import normalised


@dataclass(frozen=True)
class Entry:
    """A noun in the sense of a thing that one could paint. ``kinds``: what it is a kind of, the nearest first. ``classified``:
    whether it is a class of ImageNet, so that classifiers know it and photographs of it are common."""

    name: str
    synonyms: tuple[str, ...]
    definition: str
    kinds: tuple[str, ...]
    classified: bool


@cache
def entries() -> dict[str, Entry]:
    """The nouns that are known, the most frequent first: 3,000 English ones and the usual names of ImageNet's classes."""
    text = resources.files(__package__).joinpath("wordnet.txt").read_text("utf-8")
    found = {}
    for line in text.splitlines():
        name, synonyms, definition, kinds, classified = (cell.strip() for cell in line.split("|"))
        others, above = (tuple(w.strip() for w in cell.split(";") if w.strip()) for cell in (synonyms, kinds))
        found[normalised(name)] = Entry(name, others, definition, above, bool(classified))
    return found


def entry(name: str) -> Entry | None:
    """The entry of a name, or of one of its other names; None where there is none."""
    key = normalised(name)
    if key in entries():
        return entries()[key]
    return next((e for e in entries().values() if key in map(normalised, e.synonyms)), None)


def alike(name: str) -> list[str]:
    """Names of the same nearest kind first, then of the kind above, and so on; within a kind, classes of ImageNet and then the
    more frequent noun first. A word of which the name is a kind, or which is a kind of the name, is none."""
    own = entry(name)
    if own is None:
        return []
    mine = {normalised(n) for n in (own.name, *own.synonyms, *own.kinds)}
    depth = {kind: i for i, kind in enumerate(own.kinds)}
    ranked = []
    for i, other in enumerate(entries().values()):
        shared = [depth[kind] for kind in other.kinds if kind in depth]
        if shared and normalised(other.name) not in mine and own.name not in other.kinds:
            ranked.append((min(shared), not other.classified, i, other.name))
    return [n for _, _, _, n in sorted(ranked)]


def unlike(name: str) -> list[str]:
    """Classes of ImageNet that share no kind with the name, each of another kind."""
    own = entry(name)
    mine = set(own.kinds) | {own.name} if own is not None else {name}
    found: dict[str, str] = {}
    for other in entries().values():
        if other.classified and other.kinds and not mine & {*other.kinds, other.name}:
            found.setdefault(other.kinds[-1], other.name)
    return list(found.values())
