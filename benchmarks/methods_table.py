"""What is counted over the cells of methods side by side, and how it is printed; see from_bench.py.

Three tables of docs/results.md and one of docs/rankings.md have this form. ``methods``: AP's paired difference to every method,
and what is preserved at matched erasure. ``robust``: RAP's paired difference to methods that expect an attacker. ``options``: AP,
ESD and AGE with each cheaper option, paired with latents drawn from the student as in the papers; an option is called equivalent
where erasure and preservation are, with 95 % confidence, less than the margin worse. ``search``: adversarial preservation by
other searches, among few and many names, paired with the paper's search among 48.

A method that draws nothing at random is there for the first seed only: counting one patch three times would shrink its interval
without telling anything new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from table import (
    COMPARED,
    POINT_FIELDS,
    RATE_FIELDS,
    Pair,
    base_rate,
    counted,
    difference,
    lines_of,
    matched,
    matched_fields,
    point_fields,
    points,
    rate,
    rate_fields,
    sheet,
    short,
    sources,
)

AXES = ("direct", "synonym", "implicit", "near", "trap", "far")
LEVEL = 0.9
"""The share of direct cases erased and valid at which curves are compared."""

Found = Mapping[str, Mapping[str, list[Pair]]]
"""Entrant -> "target|seed" -> (row, the unmodified model's row)."""


@dataclass(frozen=True)
class Table:
    """What a table compares: every row with ``reference``, or, where it is empty, each with the first row of its method.
    ``margin``: an option may be this much worse."""

    name: str
    reference: str = ""
    margin: float | None = None

    def against(self, label: str, labels: Sequence[str]) -> str:
        """The row that a row is compared with."""
        method = label.partition(",")[0]
        return self.reference or next(other for other in labels if other.partition(",")[0] == method)


def result_of(
    table: Table, plan: Mapping[str, Any], by_strength: Mapping[float, Found], cost: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Every figure of the tables. ``plan``: what the bench keeps of it; ``cost``: entrant -> evals and seconds of an erasure."""
    cells = by_strength[1.0]
    made = [e["label"] for e in plan["entrants"] if e["method"] and e["label"] in cells]
    order = [e["label"] for e in plan["entrants"] if e["label"] in cells]
    pairs = [(table.against(n, made), n) for n in made]
    pairs = [(a, n) for a, n in pairs if a in cells and a != n]
    strengths = sorted(by_strength)
    curves = {n: {s: by_strength[s][n] for s in strengths} for n in made if all(n in by_strength[s] for s in strengths)}
    return {
        "table": table.name,
        "models": plan["models"],
        "targets": [group[0] for group in plan["targets"]],
        "seeds": plan["seeds"],
        "profile": plan["profile"]["name"],
        "strengths": strengths,
        "cells": {n: len(cells[n]) for n in order},
        "rates": {n: {axis: rate(cells[n], (axis,)) for axis in AXES} for n in order},
        "cost": cost,
        "base": {axis: base_rate(cells["none"], axis) for axis in AXES},
        "minus": {
            n: {
                "against": a,
                **{what: difference(cells[a], cells[n], axes) for what, axes in COMPARED.items()},
            }
            for a, n in pairs
        },
        "matched": {
            n: matched(curves[a], curves[n], LEVEL) for a, n in pairs if len(strengths) > 1 and a in curves and n in curves
        },
        "margin": table.margin,
    }


def verdict(d: Mapping[str, Any], margin: float) -> str:
    """Whether an option is less than the margin worse than its reference on both axes, with 95 % confidence."""
    bounds = [d[key]["clustered"][1] for key in ("erased", "kept") if d[key] and d[key]["clustered"]]
    return "equivalent" if len(bounds) == 2 and max(bounds) < margin else "not shown"


DRAWN_BY = {"mini": "the miniature", "icons": "the network of the world of icons"}


def markdown(result: Mapping[str, Any], page: Path | None = None) -> str:
    """Small tables with a sentence each; ``page``: where they are put, which then links the CSV files of :func:`sheets`."""
    axes, margin, name = list(result["base"]), result["margin"], result["table"]
    drawn = [f"{axis} {counted(result['base'][axis])}" for axis in axes if result["base"][axis]]
    lines = [
        f"The targets are {', '.join(result['targets'])}; training seeds {', '.join(map(str, result['seeds']))}; "
        "evaluation profile "
        f"`{result['profile']}`. These are icons drawn by {' and '.join(DRAWN_BY.get(m, m) for m in result['models'])} and not "
        "by Stable Diffusion: compare methods, not levels.",
        "",
        "The first table shows how much each entrant erases and keeps. Direct, synonym and implicit: the share of cases that are "
        "erased *and* valid. Near, trap and far: the share that is preserved. Only cases that the unmodified model gets right "
        f"count; it shows the concept in these shares of all cases: {', '.join(drawn)}.",
        "",
        *lines_of(["entrant", *axes], [[n, *(short(found[a]) for a in axes)] for n, found in result["rates"].items()]),
        "",
        *sources(page, name, {"": "rates", "differences": "paired differences"}),
        "The second table shows what each entrant costs. A cell is one target with one training seed; methods that draw "
        "nothing at "
        "random, and those that were run for one seed, have one cell per target. Seconds are the wall-clock time of "
        "`erase` on one "
        "thread of a machine that was busy.",
        "",
        *lines_of(
            ["entrant", "cells", "UNet evaluations", "seconds"],
            [
                [n, str(result["cells"][n]), f"{cost['evals']:,.0f}", f"{cost['seconds']:.1f}"]
                for n in result["rates"]
                if (cost := result["cost"].get(n))
            ],
        ),
        "",
        "## Paired differences",
        "",
        "This table shows the reference minus the row in percentage points, on the same target, training seed and case, with the "
        "resampled 95 % interval in braces. Erased pools direct, synonym and implicit; kept pools near and trap. The "
        "reference is "
        "called better or worse only where the interval leaves out zero."
        + (
            " An option is called equivalent where the upper end of the interval is below the margin of "
            f"{100 * margin:.0f} points "
            "for erased and for kept."
            if margin
            else ""
        ),
        "",
    ]
    header = ["reference", "row", "erased", "kept", "far", *(["within the margin"] if margin else [])]
    compared = [
        [d["against"], n, points(d["erased"]), points(d["kept"]), points(d["far"]), *([verdict(d, margin)] if margin else [])]
        for n, d in result["minus"].items()
    ]
    lines += lines_of(header, compared)
    if result["matched"]:
        lines += [
            "",
            "## Preserved at matched erasure",
            "",
            f"Each patch is also evaluated at {', '.join(map(str, result['strengths']))} times its strength, on a part of the "
            "cases. This "
            "table shows "
            f"how much of near and trap is preserved where {100 * LEVEL:.0f} % of the direct cases are erased and valid, by "
            "interpolation on the curve. Both curves of a pair come from the same resample; the last column says in how many "
            "resamples a curve does not reach that level.",
            "",
            *lines_of(
                ["reference", "row", "reference keeps", "row keeps", "difference", "not reached"],
                [[result["minus"][n]["against"], n, *matched_fields(m)] for n, m in result["matched"].items()],
            ),
        ]
    return "\n".join(lines) + "\n"


def sheets(result: Mapping[str, Any]) -> dict[str, str]:
    """The CSV files behind the tables: one row per entrant and axis, one per difference."""
    base = [["unmodified model, all cases", a, *rate_fields(r), "", "", ""] for a, r in result["base"].items()]
    rates = [
        [n, axis, *rate_fields(r), str(result["cells"][n]), *_cost(result["cost"].get(n))]
        for n, found in result["rates"].items()
        for axis, r in found.items()
    ]
    minus = [[d["against"], n, what, *point_fields(d[what])] for n, d in result["minus"].items() for what in COMPARED]
    return {
        "": sheet(["entrant", "axis", *RATE_FIELDS, "cells", "unet_evaluations", "seconds"], [*rates, *base]),
        "differences": sheet(["reference", "entrant", "what", *POINT_FIELDS], minus),
    }


def _cost(cost: Mapping[str, float] | None) -> list[str]:
    return [f"{cost['evals']:.0f}", f"{cost['seconds']:.1f}"] if cost else ["", ""]
