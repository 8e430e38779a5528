"""Rates, paired differences and matched comparisons over (target, training seed) cells of rows, and how they are printed.

A cell maps "target|seed" to pairs (row of an entrant, row of the base model on the same case). Intervals in braces resample
targets, then training seeds, then cases, because images of one erased model are not independent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.equations.statistics import clustered_bootstrap, matched_difference, wilson
from efface.evaluation.records import Row
from efface.io.files import write_text

Pair = tuple[Row, Row]
Cells = Mapping[str, Sequence[Pair]]

GENERALITY = ("synonym", "implicit")
TARGET_AXES = ("direct", *GENERALITY)
KEPT_AXES = ("near", "trap")


def success(pair: Pair) -> float:
    """Erased and valid on target axes, preserved on keep axes."""
    row = pair[0]
    return float((row.valid and not row.hit) if row.axis in TARGET_AXES else row.hit)


def by_target(cells: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, list[Any]]]:
    """Targets of training seeds of cases: how the bootstrap resamples."""
    tree: dict[str, dict[str, list[Any]]] = defaultdict(dict)
    for name, values in sorted(cells.items()):
        if values:
            target, seed = name.split("|")
            tree[target][seed] = list(values)
    return tree


def rate(cells: Cells, axes: Sequence[str]) -> dict[str, Any] | None:
    """Headline rate over all cells, of cases the base model gets right."""
    pairs = {name: [p for p in found if p[0].axis in axes and p[1].hit] for name, found in cells.items()}
    clusters = {name: [success(p) for p in found] for name, found in pairs.items()}
    values = [v for group in clusters.values() for v in group]
    if not values:
        return None
    invalid = sum(not p[0].valid for found in pairs.values() for p in found)
    return {**wilson(int(sum(values)), len(values), invalid).json(), "clustered": clustered_bootstrap(by_target(clusters))}


def base_rate(cells: Cells, axis: str) -> dict[str, Any] | None:
    rows = [r for pairs in cells.values() for r, _ in pairs if r.axis == axis]
    return wilson(sum(r.hit for r in rows), len(rows)).json() if rows else None


def difference(a: Cells, b: Cells, axes: Sequence[str]) -> dict[str, Any] | None:
    """Mean paired difference a - b of successes on the same target, seed and case, with its nested interval."""
    clusters: dict[str, list[float]] = {}
    for name in a.keys() & b.keys():
        other = {p[0].case_id: p for p in b[name]}
        clusters[name] = [success(p) - success(other[p[0].case_id]) for p in a[name] if p[0].axis in axes and p[1].hit]
    return mean_difference(clusters)


def mean_difference(clusters: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Mean of paired differences by "target|seed", with its nested interval."""
    values = [v for group in clusters.values() for v in group]
    if not values:
        return None
    return {"difference": sum(values) / len(values), "n": len(values), "clustered": clustered_bootstrap(by_target(clusters))}


Curve = Mapping[float, Cells]
"""Strength of the patch -> its cells."""


def matched(a: Curve, b: Curve, level: float, *, replicates: int = 2000, seed: int = 0) -> dict[str, Any]:
    """What two methods preserve at the strengths where each has erased ``level`` of the direct cases.

    Erased and valid of direct, preserved of near and trap, targets resampled, then seeds, then cases: see
    :func:`efface.equations.statistics.matched_difference`.
    """
    cases: dict[str, list[tuple[str, tuple[float, ...], tuple[float, ...]]]] = {}
    strengths = [sorted(a), sorted(b)]
    for name in set.intersection(*(set(cells) for curve in (a, b) for cells in curve.values())):
        found = [
            {s: {p[0].case_id: p for p in curve[s][name]} for s in order} for curve, order in zip((a, b), strengths, strict=True)
        ]
        shared = set.intersection(*(set(c) for one in found for c in one.values()))
        some = found[0][strengths[0][0]]
        cases[name] = [
            (
                "erased" if some[i][0].axis == "direct" else "rest",
                *(tuple(success(one[s][i]) for s in order) for one, order in zip(found, strengths, strict=True)),
            )
            for i in sorted(shared)
            if some[i][1].hit and some[i][0].axis in ("direct", *KEPT_AXES)
        ]
    found = matched_difference(by_target(cases), level, 1.0, replicates=replicates, seed=seed)
    return {**{k: v for k, v in found.items() if k != "rest"}, "kept": found["rest"]}


def rate_text(r: Mapping[str, Any] | None) -> str:
    if r is None:
        return "not measured"
    text = f"{100 * r['value']:.0f}% [{100 * r['low']:.0f}, {100 * r['high']:.0f}]"
    if r.get("clustered"):
        text += f" {{{100 * r['clustered'][0]:.0f}, {100 * r['clustered'][1]:.0f}}}"
    return text + f" {r['k']}/{r['n']}" + (f", {r['invalid']} invalid" if r.get("invalid") else "")


def points(d: Mapping[str, Any] | None) -> str:
    """A paired difference in percentage points, and whether its interval leaves out zero."""
    if d is None:
        return "not measured"
    text = f"{100 * d['difference']:+.1f}"
    if d["clustered"]:
        low, high = d["clustered"]
        text += f" {{{100 * low:+.1f}, {100 * high:+.1f}}}" + (" **better**" if low > 0 else " **worse**" if high < 0 else "")
    return text + f" n={d['n']}"


def matched_text(m: Mapping[str, Any]) -> str:
    shown = [f"{100 * k:.0f}%" if k is not None else "not reached" for k in m["kept"]]
    text = f"{shown[0]} | {shown[1]}"
    if m["difference"] is None:
        return f"{text} | -"
    low, high = m["interval"]
    verdict = " **better**" if low > 0 else " **worse**" if high < 0 else ""
    rest = f", not reached in {100 * m['not_reached']:.0f}% of resamples" if m["not_reached"] else ""
    return f"{text} | {100 * m['difference']:+.1f} {{{100 * low:+.1f}, {100 * high:+.1f}}}{verdict}{rest}"


def lines_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A markdown table."""
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(row)} |" for row in rows)]


def into_page(page: Path, name: str, text: str) -> None:
    """Replace what stands between the page's markers ``<!-- name -->`` and ``<!-- /name -->``; the words around stay."""
    before, mark, rest = page.read_text("utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not mark or not end:
        raise SystemExit(f"{page} has no markers <!-- {name} --> and <!-- /{name} -->; add them where the table shall stand.")
    write_text(page, f"{before}{mark}{text}{end}{after}")
