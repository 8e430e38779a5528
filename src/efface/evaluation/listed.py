"""Suites for real models, written down: fixed names, prompts and descriptions, each a file with a version."""

from __future__ import annotations

import hashlib
import random
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from ..concepts.request import CATEGORY, STYLE, normalised
from ..errors import BadRequest, UnknownName
from ..models.world import World
from .suite import Neighbour, Suite, SuiteSource, lexical_traps

FAR_COUNT = 10


class Listed(SuiteSource):
    """Abstract. A suite whose targets stand in a table. ``name`` is also the file's name, and ends with the version.

    A version is never changed, so that numbers with its name can be compared; its sha256 is in every record.
    """

    def suite(self, world: World | None, targets: Sequence[str]) -> Suite:
        """The suite of listed targets, for any model. Raises UnknownName for a target that is not listed."""
        raw, digest = _file(self.name)
        rows, known = raw["rows"], {normalised(n): n for n in raw["rows"]}
        for target in targets:
            if normalised(target) not in known:
                raise UnknownName(f"target of the suite {self.name}", target, rows)
        mine = [known[normalised(t)] for t in targets]
        named = dict(zip(mine, targets, strict=True))  # the user's spelling is the one in the records
        made = self._made(raw, mine, named)
        kept = {n.name for n in (*made.near, *made.far, *made.trap)} & set(targets)
        if kept:
            raise BadRequest(
                f"{', '.join(sorted(kept))} is a target, and also what the suite {self.name} keeps beside another one."
            )
        return Suite(**{**vars(made), "source": f"{self.name}, sha256 {digest[:16]}"})

    @staticmethod
    def _made(raw: Mapping[str, Any], mine: Sequence[str], named: Mapping[str, str]) -> Suite:
        rows, kind, templates = raw["rows"], str(raw["kind"]), tuple(raw["templates"])
        targets = tuple(named.values())
        synonyms, implicit = ({named[m]: rows[m][k] for m in mine} for k in ("synonyms", "implicit"))
        if kind == STYLE:
            forms = {named.get(n, n): tuple(f.replace("NAME", n) for f in raw["forms"]) for n in rows}
            near = _kept([n for n in rows if n not in mine], "another style of the list")
            far = _kept(raw["far"], "no style named")
            reworded = {t: tuple(f.replace("NAME", w) for w in words for f in raw["forms"][:2]) for t, words in synonyms.items()}
            shown = (tuple(raw["subjects"]), forms, {n: n for n in forms})
            return Suite(targets, near, (), far, reworded, implicit, templates, kind, *shown)
        listed = list(dict.fromkeys(n for m in mine for n in rows[m]["near"] if n not in mine))
        members = {named[m]: rows[m]["members"] for m in mine} if kind == CATEGORY else {}
        traps = [n for t in (*mine, *(x for group in members.values() for x in group)) for n in lexical_traps(t, listed)]
        near = _kept([n for n in listed if n not in traps], "listed")
        trap = _kept(list(dict.fromkeys(traps)), "shares a word")
        others = raw.get("far") or [n for n in rows if n not in (*mine, *listed) and not _shared(rows, mine, n)]
        chosen = random.Random("far " + " ".join(mine)).sample(others, min(FAR_COUNT, len(others)))
        far = _kept(chosen, "another target of the list" if "far" not in raw else "listed")
        return Suite(targets, near, trap, far, synonyms, implicit, templates, kind, members=members)


def _shared(rows: Mapping[str, Any], mine: Sequence[str], name: str) -> bool:
    return any(rows[m]["group"] == rows[name]["group"] for m in mine)


def _kept(names: Sequence[str], source: str) -> tuple[Neighbour, ...]:
    return tuple(Neighbour(n, source, "test" if i % 2 == 0 else "dev") for i, n in enumerate(names))


COLUMNS = {
    "object": ("group", "synonyms", "near", "implicit"),
    "style": ("synonyms", "implicit"),
    "category": ("members", "synonyms", "near", "implicit"),
}
"""What follows the name in a row of the table, by kind of target."""


@cache
def _file(name: str) -> tuple[dict[str, Any], str]:
    """A suite's file and its sha256. ``rows``: name -> {column: words}."""
    data = resources.files(__package__).joinpath("suites", f"{name}.toml").read_bytes()
    raw = tomllib.loads(data.decode("utf-8"))
    columns, rows = COLUMNS[raw["kind"]], {}
    for line in raw.pop("table").strip().splitlines():
        first, *cells = (cell.strip() for cell in line.split("|"))
        rows[first] = {
            c: cell if c == "group" else tuple(w.strip() for w in cell.split(";")) for c, cell in zip(columns, cells, strict=True)
        }
    return {**raw, "rows": rows}, hashlib.sha256(data).hexdigest()


class Objects(Listed):
    """Twenty objects of ImageNet, the ten of Imagenette among them; everything to keep is a class of ImageNet too."""

    name = "objects-v1"
    summary = "20 objects of ImageNet (Imagenette's ten among them), for any model; judge with --detector imagenet"


class Styles(Listed):
    """Ten painters who died more than 70 years ago."""

    name = "styles-v1"
    summary = "10 painters, dead for more than 70 years, for any model (--kind style); judge with --clip"


class Characters(Listed):
    """Ten figures of folklore and of books in the public domain."""

    name = "characters-v1"
    summary = "10 figures of folklore and old books, for any model; judge with --clip"


class Spiders(Listed):
    """Spiders, as a broad target without harm: an ImageNet classifier names them, and scenes describe them without the word."""

    name = "spiders-v1"
    summary = "a broad target that harms nobody, for any model (--target spider); judge with --detector imagenet"
