"""Rates, paired differences and matched comparisons over the cells of a table, and how they are printed.

A cell is one target with one training seed. ``Cells`` maps "target|seed" to pairs: the scored image of an entrant and that of
the unmodified model on the same case. Resampled intervals, printed in braces, draw targets, then training seeds, then cases,
because images of one erased model are not independent.

A page shows small tables with what matters; every rate and difference with its counts and both intervals goes into CSV files in
the folder ``tables`` beside the page.
"""

from __future__ import annotations

import csv
import io
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
COMPARED = {"erased": TARGET_AXES, "kept": KEPT_AXES, "far": ("far",)}
"""What paired differences pool -> its axes."""


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


def short(r: Mapping[str, Any] | None) -> str:
    """The rate alone, for a small table; its counts and intervals are in the CSV file."""
    return "not measured" if r is None else f"{100 * r['value']:.0f}%"


def counted(r: Mapping[str, Any] | None) -> str:
    """The rate with its counts, where they are small enough to matter to the reader."""
    return "not measured" if r is None else f"{short(r)} ({r['k']}/{r['n']})"


RATE_FIELDS = ("percent", "k", "n", "invalid", "cases_low", "cases_high", "resampled_low", "resampled_high")


def rate_fields(r: Mapping[str, Any] | None) -> list[str]:
    """One rate as fields of a CSV row, in percent. Empty fields: not measured, or too few targets to resample."""
    if r is None:
        return [""] * len(RATE_FIELDS)
    bounds = [r["low"], r["high"], *(r.get("clustered") or ())]
    numbers = [f"{100 * b:.0f}" for b in bounds]
    return [f"{100 * r['value']:.0f}", str(r["k"]), str(r["n"]), str(r.get("invalid") or 0), *numbers, *[""] * (4 - len(numbers))]


def points(d: Mapping[str, Any] | None, upwards: bool = True) -> str:
    """A paired difference in percentage points with its resampled interval. It is called better or worse only where the interval
    leaves out zero; ``upwards``: more is better."""
    if d is None:
        return "not measured"
    text = f"{100 * d['difference']:+.1f}"
    if d["clustered"]:
        low, high = d["clustered"]
        good = (low > 0) - (high < 0) if upwards else (high < 0) - (low > 0)
        text += f" {{{100 * low:+.1f}, {100 * high:+.1f}}}" + ("", " **better**", " **worse**")[good]
    return text


POINT_FIELDS = ("points", "resampled_low", "resampled_high", "n")


def point_fields(d: Mapping[str, Any] | None) -> list[str]:
    """One paired difference as fields of a CSV row, in percentage points."""
    if d is None:
        return [""] * len(POINT_FIELDS)
    bounds = [f"{100 * b:+.1f}" for b in d["clustered"] or ()]
    return [f"{100 * d['difference']:+.1f}", *bounds, *[""] * (2 - len(bounds)), str(d["n"])]


def matched_fields(m: Mapping[str, Any]) -> list[str]:
    """What two methods keep at matched erasure: both rates, their difference, and the share of resamples whose curve does not
    reach the level."""
    kept = [f"{100 * k:.0f}%" if k is not None else "not reached" for k in m["kept"]]
    if m["difference"] is None:
        return [*kept, "-", "-"]
    low, high = m["interval"]
    verdict = " **better**" if low > 0 else " **worse**" if high < 0 else ""
    return [
        *kept,
        f"{100 * m['difference']:+.1f} {{{100 * low:+.1f}, {100 * high:+.1f}}}{verdict}",
        f"{100 * m['not_reached']:.0f}%",
    ]


def lines_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A markdown table."""
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(row)} |" for row in rows)]


def sheet(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def file_name(page: Path, name: str, part: str = "") -> str:
    """The CSV file of one part of a page's table, in the folder ``tables`` beside the page."""
    return "_".join(dict.fromkeys(p for p in (page.stem, name, part) if p)) + ".csv"


def sources(
    page: Path | None, name: str, parts: Mapping[str, str], more: str = "Counts, invalid images and both kinds of interval"
) -> list[str]:
    """The sentence that leads from a small table to its CSV files; nothing for a table that is printed and not put into a page.

    ``parts``: part of the table -> what its file is called; ``more``: what the files have beyond the small table.
    """
    if page is None:
        return []
    links = [f"[{said}](tables/{file_name(page, name, part)})" for part, said in parts.items()]
    return [f"{more} are in {'a CSV file' if len(links) == 1 else 'CSV files'}: {', '.join(links)}.", ""]


def into_page(page: Path, name: str, text: str, sheets: Mapping[str, str] | None = None) -> None:
    """Replace what stands between the page's markers ``<!-- name -->`` and ``<!-- /name -->``; the words around stay. ``sheets``:
    part of the table -> text of its CSV file."""
    before, mark, rest = page.read_text("utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not mark or not end:
        raise SystemExit(f"{page} has no markers <!-- {name} --> and <!-- /{name} -->; add them where the table shall stand.")
    for part, content in (sheets or {}).items():
        write_text(page.parent / "tables" / file_name(page, name, part), content)
    write_text(page, f"{before}{mark}{text}{end}{after}")
