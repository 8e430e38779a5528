"""Tables by kind of target from the records of their plans: those of docs/kinds.md, and of closed forms in two worlds.

    efface bench benchmarks/plans/kinds.toml --out runs/kinds
    python benchmarks/kinds.py runs/kinds --docs docs/kinds.md
    efface bench benchmarks/plans/icons-kinds.toml --out runs/icons-kinds
    python benchmarks/kinds.py runs/icons-kinds --docs docs/kinds.md --world icons

``--world local`` and ``--world icons-local`` make the tables of the plans of these names.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from table import RATE_FIELDS, counted, into_page, lines_of, rate_fields, sheet, sources

import efface
from efface.equations.statistics import wilson

KINDS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "mini": {
        "style": ("noto style", "twemoji style"),
        "category": ("weapon",),
        "attribute": ("red background",),
    },
    "icons": {
        "style": ("twemoji style", "blob style", "fluent style", "flat style"),
        "category": ("birds", "vehicles"),
        "expression": ("smiling faces",),
        "attribute": ("red background",),
    },
    "local": {"object": ("fire engine", "dog", "palm tree", "castle", "guitar", "crossed swords")},
    "icons-local": {
        "object": ("semitrailer truck", "boar", "blossom", "cherries", "horn", "church", "anchor", "bikini"),
        "style": ("twemoji style", "blob style", "fluent style", "flat style"),
        "category": ("birds", "vehicles"),
        "expression": ("smiling faces",),
    },
}
MARKERS = {"mini": "kinds", "icons": "icons-kinds", "local": "local", "icons-local": "icons-local"}
AXES = ("direct", "synonym", "near", "content", "far")


def pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The cases of several targets as one rate; None where nothing was measured."""
    n = sum(r["n"] for r in rows)
    return wilson(sum(r["k"] for r in rows), n, sum(r["invalid"] for r in rows)).json() if n else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="folder of the bench")
    parser.add_argument("--docs", type=Path, required=True, help="page whose table is written")
    parser.add_argument("--world", choices=list(KINDS), default="mini")
    args = parser.parse_args()
    asked = "SELECT entrant, targets, axis, k, n, rate, low, high, invalid FROM rates_by_target"
    found = {(r["entrant"], r["targets"], r["axis"]): r for r in efface.query(args.records, asked)}
    entrants = list(dict.fromkeys(entrant for entrant, _, _ in found))
    rows, fields = [], []
    for kind, targets in KINDS[args.world].items():
        for entrant in (e for e in entrants if e != "none"):
            cells = [pooled([found[entrant, t, axis] for t in targets if (entrant, t, axis) in found]) for axis in AXES]
            rows.append([kind, f"`{entrant}`", *map(counted, cells)])
        for target in targets:
            for entrant in entrants:
                for axis in AXES:
                    if (entrant, target, axis) in found:
                        fields.append([kind, target, entrant, axis, *rate_fields(pooled([found[entrant, target, axis]]))])
    head = ["kind", "method", "erased by name", "in other words", "near kept", "object kept", "far kept"]
    csv = sheet(["kind", "target", "entrant", "axis", *RATE_FIELDS], fields)
    page, marker = args.docs, MARKERS[args.world]
    into_page(page, marker, "\n".join([*lines_of(head, rows), "", *sources(page, marker, {"": "rates"})]), {"": csv})


if __name__ == "__main__":
    main()
