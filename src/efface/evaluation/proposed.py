"""Suites that WordNet proposes for an object, and suites in a file of the user's."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..concepts.request import OBJECT, normalised
from ..concepts.wordnet import alike, entry, unlike
from ..errors import BadFile, BadRequest
from ..io.files import write_text
from .suite import TEMPLATES, Neighbour, Suite, lexical_traps

HEAD = """# What `efface evaluate --suite FILE` looks at. Written by `efface suite`; edit it, and run the evaluation with it.
# near: concepts that resemble a target and must stay. trap: concepts that share a word with one. far: unrelated concepts.
# synonyms: other names of a target. implicit: whole prompts that show it without naming it.
"""


NEAR, FAR = 8, 10


def proposed(targets: Sequence[str], known: Callable[[Sequence[str]], Sequence[str]] = lambda names: names) -> Suite:
    """Near, far, synonyms and a description of objects from WordNet: up to 8 near ones per target, and 10 far ones.

    ``known`` keeps of names those that can be told apart. Raises BadRequest for a target that WordNet's list has not.
    """
    for target in targets:
        if entry(target) is None:
            raise BadRequest(
                f"WordNet's list has no noun {target!r}, so that no neighbours can be proposed: name at least one related "
                "concept (--near NAME) and one unrelated concept (--far NAME) that must stay, or give a --suite."
            )
    taken = {normalised(t) for t in targets}
    near = _distinct([n for t in targets for n in list(known(alike(t)))[:NEAR]], taken)
    far = _distinct([n for t in targets for n in list(known(unlike(t)))[:FAR]], taken)[:FAR]
    if not near or not far:
        raise BadRequest(
            f"the detector knows too little of what WordNet has near {targets[0]!r} and far from it: name at least one --near "
            "NAME and one --far NAME, or add --clip FOLDER_OR_HUB_ID, which names anything."
        )
    traps = {t for target in targets for t in lexical_traps(target, [*near, *far])}
    found = {t: entry(t) for t in targets}
    synonyms = {t: tuple(n for n in (e.name, *e.synonyms) if normalised(n) != normalised(t)) for t, e in found.items() if e}
    implicit = {t: (e.definition,) for t, e in found.items() if e and normalised(t) not in normalised(e.definition)}
    sided = dict.fromkeys(near, "WordNet, of a kind") | dict.fromkeys(far, "WordNet, of another kind")
    groups = ([n for n in near if n not in traps], sorted(traps), [n for n in far if n not in traps])
    kept = [tuple(Neighbour(n, sided[n], "test") for n in group) for group in groups]
    return Suite(tuple(targets), kept[0], kept[1], kept[2], synonyms, implicit, source="proposed from WordNet 3.1")


def _distinct(names: Sequence[str], taken: set[str]) -> list[str]:
    """The names once, without those that are taken, which they join."""
    found = []
    for name in names:
        if normalised(name) not in taken:
            taken.add(normalised(name))
            found.append(name)
    return found


def write_suite(suite: Suite, path: Path) -> None:
    """Write a suite of objects as TOML that people edit."""

    def words(names: Sequence[str]) -> str:
        return json.dumps(list(names), ensure_ascii=False)

    lines = [f"targets = {words(suite.targets)}"]
    lines += [f"{axis} = {words([n.name for n in getattr(suite, axis)])}" for axis in ("near", "trap", "far")]
    lines.append(f"templates = {words(suite.templates)}")
    for title, table in (("synonyms", suite.synonyms), ("implicit", suite.implicit)):
        lines += ["", f"[{title}]", *(f"{json.dumps(t, ensure_ascii=False)} = {words(table.get(t, ()))}" for t in suite.targets)]
    write_text(path, HEAD + "\n".join(lines) + "\n")


def read_suite(path: Path, targets: Sequence[str]) -> Suite:
    """A suite from a file, for exactly these targets. Raises BadFile for anything else."""
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadFile(f"cannot read the suite {str(path)!r}: {error}.") from error
    known = ("targets", "near", "trap", "far", "templates", "synonyms", "implicit")
    wrong = [key for key in raw if key not in known]
    if wrong:
        raise BadFile(f"{path}: there is no {wrong[0]!r} in a suite; known are {', '.join(known)}.")
    listed = {key: _names(raw.get(key, []), f"{path}: {key}") for key in ("targets", "near", "trap", "far", "templates")}
    if sorted(map(normalised, listed["targets"])) != sorted(map(normalised, targets)):
        raise BadFile(f"{path} is a suite for {', '.join(listed['targets'])}, and the patch erases {', '.join(targets)}.")
    if not listed["near"] or not listed["far"]:
        raise BadFile(f"{path} keeps nothing: it needs at least one name in near and one in far.")
    templates = listed["templates"] or TEMPLATES
    without = [t for t in templates if "{}" not in t]
    if without:
        raise BadFile(f"{path}: the template {without[0]!r} has no {{}} for the concept.")
    tables = {key: _words(raw.get(key, {}), targets, f"{path}: {key}") for key in ("synonyms", "implicit")}
    seen = {normalised(t): "a target" for t in targets}
    for axis in ("near", "trap", "far"):
        for name in listed[axis]:
            if seen.setdefault(normalised(name), axis) != axis or not normalised(name):
                raise BadFile(f"{path}: {name!r} in {axis} is empty or {seen[normalised(name)]} as well.")
    kept = [tuple(Neighbour(n, "given", "test") for n in dict.fromkeys(listed[axis])) for axis in ("near", "trap", "far")]
    near, trap, far = kept
    words = (tables["synonyms"], tables["implicit"])
    return Suite(tuple(targets), near, trap, far, *words, tuple(templates), OBJECT, source=path.name)


def _names(raw: Any, where: str) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(n, str) for n in raw):
        raise BadFile(f"{where} is a list of names, not {raw!r}.")
    return tuple(raw)


def _words(raw: Any, targets: Sequence[str], where: str) -> dict[str, tuple[str, ...]]:
    """Words by target, in the spelling of the targets."""
    mine = {normalised(t): t for t in targets}
    if not isinstance(raw, dict) or any(normalised(t) not in mine for t in raw):
        raise BadFile(f"{where} is a table with a list of words for each of {', '.join(targets)}.")
    return {mine[normalised(t)]: _names(words, f"{where}.{t}") for t, words in raw.items()}
