"""The same methods in two worlds: what each erases and keeps, and whether they come out in the same order.

    python benchmarks/rankings.py docs/records/rankings docs/records/icons [--docs docs/rankings.md] [--json]

Reads the records of ``efface bench`` on the plans ``rankings`` (the miniature) and ``icons`` (the world of icons). The two worlds
share no concept, so every method of both plans is compared by its rates over all targets of a world. Kendall's tau-b compares the
orders; its interval resamples targets, then training seeds, then cases, in each world by itself and for all methods alike. Within
a world, adversarial preservation is compared with every other method on the same target, training seed and case.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flow import tau_b
from from_bench import pairs_of, read
from numpy.typing import NDArray
from table import (
    COMPARED,
    POINT_FIELDS,
    RATE_FIELDS,
    Cells,
    by_target,
    counted,
    difference,
    into_page,
    lines_of,
    point_fields,
    points,
    rate,
    rate_fields,
    sheet,
    sources,
    success,
)

AXES = {
    "erased by name": ("direct",),
    "erased in other words": ("synonym", "implicit"),
    "near kept": ("near",),
    "shared words kept": ("trap",),
    "far kept": ("far",),
}
REPLICATES = 2000
WORLDS = {"rankings": "miniature", "icons": "icons"}
"""Plan -> the world that its models draw."""
REFERENCE = "ap"

Successes = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
"""Target -> training seed -> case -> method -> success, of cases that all methods have."""


def successes(found: Mapping[str, Cells], axes: Sequence[str]) -> Successes:
    """A method that takes one training seed stands in every seed of the others."""
    trees = {
        method: by_target({cell: [p for p in pairs if p[0].axis in axes and p[1].hit] for cell, pairs in cells.items()})
        for method, cells in found.items()
    }
    out: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for target in sorted(set.intersection(*(set(tree) for tree in trees.values()))):
        for seed in sorted({s for tree in trees.values() for s in tree[target]}):
            cases: dict[str, dict[str, float]] = {}
            for method, tree in trees.items():
                for pair in tree[target].get(seed, next(iter(tree[target].values()))):
                    cases.setdefault(pair[0].case_id, {})[method] = success(pair)
            out.setdefault(target, {})[seed] = {c: row for c, row in cases.items() if len(row) == len(trees)}
    return out


def tables(found: Successes, methods: Sequence[str]) -> list[list[NDArray[np.float64]]]:
    """For each target, for each training seed that has cases: (cases, methods) successes."""
    trees = [[cases for cases in seeds.values() if cases] for seeds in found.values()]
    return [[np.array([[row[m] for m in methods] for row in cases.values()]) for cases in seeds] for seeds in trees if seeds]


def rates(found: Sequence[Sequence[NDArray[np.float64]]], rng: np.random.Generator | None) -> NDArray[np.float64]:
    """The rate of each method, over everything or over one resample of targets, then seeds, then cases."""

    def some(n: int) -> NDArray[np.int64]:
        return np.arange(n) if rng is None else rng.integers(n, size=n)

    drawn = [seeds[i] for seeds in (found[k] for k in some(len(found))) for i in some(len(seeds))]
    return np.concatenate([cases[some(len(cases))] for cases in drawn]).mean(0)


def agreement(worlds: Sequence[Successes], methods: Sequence[str]) -> dict[str, Any]:
    """tau-b of the orders in two worlds, and its 95 % interval; None where a world orders nothing or has no case."""
    cases = [tables(world, methods) for world in worlds]

    def tau(rng: np.random.Generator | None) -> float | None:
        if not all(cases):
            return None
        a, b = (rates(world, rng).tolist() for world in cases)
        return tau_b(a, b)

    rng = np.random.default_rng(0)
    drawn = sorted(t for _ in range(REPLICATES) if (t := tau(rng)) is not None)
    low, high = (drawn[round(q * (len(drawn) - 1))] for q in (0.025, 0.975)) if drawn else (None, None)
    return {"tau": tau(None), "low": low, "high": high, "methods": len(methods), "targets": [len(w) for w in worlds]}


def paired(found: Mapping[str, Mapping[str, Cells]], methods: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """The reference minus every other method in each world: rows of the table, and of its CSV file."""
    rows, fields = [], []
    for method in methods:
        if method == REFERENCE:
            continue
        row = [f"`{method}`"]
        for what, axes in COMPARED.items():
            for plan, world in WORLDS.items():
                minus = difference(found[plan][REFERENCE], found[plan][method], axes)
                row.append(points(minus))
                fields.append([world, REFERENCE, method, what, *point_fields(minus)])
        rows.append(row)
    return rows, fields


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("miniature", type=Path, help="folder of the bench on the plan rankings")
    parser.add_argument("icons", type=Path, help="folder of the bench on the plan icons")
    parser.add_argument("--docs", type=Path, help="put the tables between the page's markers")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folders = {"rankings": args.miniature, "icons": args.icons}
    read_from = {plan: read(folder, plan) for plan, folder in folders.items()}
    found = {plan: pairs_of(placed)[1.0] for plan, (_, placed) in read_from.items()}
    methods = [m for m in found["icons"] if m in found["rankings"] and m != "none"]
    fields, taus, parts = [], {}, []
    for plan, world in WORLDS.items():
        rows = []
        for method in methods:
            cells = {name: rate(found[plan][method], axes) for name, axes in AXES.items()}
            rows.append([f"`{method}`", *map(counted, cells.values())])
            fields += [[world, method, name, *rate_fields(r)] for name, r in cells.items()]
        parts += ["", *lines_of([f"method, {world}", *AXES], rows)]
    for name, axes in AXES.items():
        taus[name] = agreement([successes({m: found[plan][m] for m in methods}, axes) for plan in WORLDS], methods)
    orders = [
        [
            name,
            "no order" if t["tau"] is None else f"{t['tau']:+.2f}",
            "" if t["low"] is None else f"{t['low']:+.2f} to {t['high']:+.2f}",
        ]
        for name, t in taus.items()
    ]
    minus, minus_fields = paired(found, methods)
    facts = {plan: {k: read_from[plan][0]["plan"][k] for k in ("targets", "seeds")} for plan in WORLDS}
    told = "; ".join(
        f"{world}: {', '.join(g[0] for g in facts[plan]['targets'])}, {len(facts[plan]['seeds'])} training seed(s)"
        for plan, world in WORLDS.items()
    )
    text = "\n".join(
        [
            f"Targets and seeds. {told[0].upper()}{told[1:]}.",
            *parts,
            "",
            "Kendall's tau-b of the orders in the two worlds, 1 for the same order and -1 for the opposite one:",
            "",
            *lines_of(["by", "tau-b", "95 % interval"], orders),
            "",
            f"The next table shows `{REFERENCE}` minus the row in percentage points, on the same target, training seed and case, "
            "with the resampled 95 % interval in braces. Erased pools the prompts by name and in other words; kept pools near "
            f"concepts and those that share a word. `{REFERENCE}` is called better or worse only where the interval leaves out "
            "zero.",
            "",
            *lines_of(["row", *(f"{what}, {world}" for what in COMPARED for world in WORLDS.values())], minus),
        ]
    )
    if args.docs:
        sheets = {
            "": sheet(["world", "method", "axis", *RATE_FIELDS], fields),
            "differences": sheet(["world", "reference", "method", "what", *POINT_FIELDS], minus_fields),
        }
        links = sources(args.docs, "rankings", {"": "rates", "differences": "paired differences"})
        into_page(args.docs, "rankings", "\n".join([text, "", *links]), sheets)
    print(json.dumps({"tau": taus, "facts": facts}) if args.json else text)


if __name__ == "__main__":
    main()
