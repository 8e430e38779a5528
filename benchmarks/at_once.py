"""Many concepts erased at once: what is erased, what is kept, and of closed-form edits what comes back.

    python benchmarks/at_once.py mini DIR [--json] [--docs docs/closed_form.md]
    python benchmarks/at_once.py icons-many DIR [--json] [--docs docs/kinds.md]

DIR holds the benches of the plans closed-form-few and closed-form-many, or of icons-many. "comes back": the gradient-free attack
c' = T^-1 c (efface.edits.BringBack) on the direct prompts; the share of images that show the target again.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from from_bench import edit_of, pairs_of, read
from table import RATE_FIELDS, into_page, lines_of, rate, rate_fields, sheet, short, sources

from efface.equations.statistics import wilson
from efface.plans.records import Store

PLANS = {"mini": ("closed-form-few", "closed-form-many"), "icons-many": ("icons-many",)}
"""Marker of a page -> the plans whose tables stand there."""
AXES = {"direct": ("direct",), "generality": ("synonym", "implicit"), "near": ("near",), "trap": ("trap",), "far": ("far",)}


def result_of(folder: Path, plans: Sequence[str]) -> dict[str, Any]:
    """``table``: number of concepts -> edit -> rates, and of edits ``edit`` (what the solve says of itself) and ``seconds``."""
    store, table = Store(folder), defaultdict[int, dict[str, Any]](dict)
    for name in plans:
        plan, placed = read(folder, name)
        for group in plan["plan"]["targets"]:
            mine = [p for p in placed if p.place["targets"] == list(group)]
            for label, cells in pairs_of(mine)[1.0].items():
                row = table[len(group)][label] = {column: rate(cells, axes) for column, axes in AXES.items()}
                own = [p for p in mine if p.place["entrant"] == label]
                attacks = [p.broken for p in own if p.place["attack"] == "inverse"]
                back = [broken for one in attacks for broken in one.values()]
                row["comes back"] = wilson(sum(back), len(back)).json() if back else None
                for p in own:
                    if p.place["kind"] == "erase" and p.record is not None:
                        row |= {"edit": edit_of(store, p.place["key"], p.record), "seconds": p.record["run"]["seconds"]}
    return {"table": dict(table)}


COLUMNS = ("direct", "generality", "near", "trap", "far", "comes back")
CASES = 6
"""The fields of a rate without its resampled interval: there is one set of targets."""


def markdown(result: dict[str, Any], marker: str, page: Path | None = None) -> str:
    """One small table per number of concepts; ``page``: where they are put, which then links the CSV file of :func:`sheets`."""
    attacked = any(row["comes back"] for rows in result["table"].values() for row in rows.values())
    columns = COLUMNS if attacked else COLUMNS[:-1]
    back = " Comes back: the share of images that show the target again after the attack `c' = T^-1 c`."
    lines = [
        "Each table shows what is left after erasing that many concepts at once, in percent of the cases that the unmodified "
        "model gets right. Erased is direct, generality pools synonym and implicit, and an invalid image counts as not erased."
        f"{back if attacked else ''}",
        "",
        *sources(
            page,
            marker,
            {"": "all rates"},
            "Intervals over cases, invalid images, the condition number of T, the length of the embedding that undoes "
            "the edit and seconds",
        ),
    ]
    for n, rows in result["table"].items():
        lines += [
            f"**{n} concept{'s' if int(n) > 1 else ''} at once**",
            "",
            *lines_of(
                ["entrant", "erased", *columns[1:]],
                [[label, *(shown(row.get(c)) for c in columns)] for label, row in rows.items()],
            ),
            "",
        ]
    return "\n".join(lines)


def shown(r: dict[str, Any] | None) -> str:
    return short(r) if r and r["n"] else "-"


def sheets(result: dict[str, Any]) -> dict[str, str]:
    """The CSV file behind the tables: one row per number of concepts, edit and rate."""
    body = []
    for n, rows in result["table"].items():
        for label, row in rows.items():
            edit, facts = row.get("edit"), ["", "", "", ""]
            if edit:
                condition = "none" if edit["condition"] is None else f"{edit['condition']:.1e}"
                back = edit["bring_back"]
                facts = [condition, f"{back['length']:.3g}", f"{100 * back['missed']:.0f}", f"{row['seconds']:.2f}"]
            for column in COLUMNS:
                if (r := row.get(column)) and r["n"]:
                    body.append([n, label, column, *rate_fields(r)[:CASES], *facts])
    head = [
        "concepts",
        "edit",
        "rate",
        *RATE_FIELDS[:CASES],
        "condition",
        "way_back_length",
        "way_back_missed_percent",
        "seconds",
    ]
    return {"": sheet(head, body)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(PLANS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--docs", type=Path, help="put the table between the page's markers")
    args = parser.parse_args()
    result = result_of(args.folder, PLANS[args.table])
    if args.docs:
        into_page(args.docs, args.table, markdown(result, args.table, args.docs), sheets(result))
    print(json.dumps(result) if args.json else markdown(result, args.table))


if __name__ == "__main__":
    main()
