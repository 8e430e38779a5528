"""What is counted over the cells of defences under attack, and how it is printed; see from_bench.py."""

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
    by_target,
    counted,
    lines_of,
    mean_difference,
    point_fields,
    points,
    rate,
    rate_fields,
    sheet,
    short,
    sources,
    success,
)

from efface.equations.statistics import clustered_bootstrap, wilson

CONTROLS = ("random_token", "seed_search")
KEPT = ("near", "trap", "far")


@dataclass
class Found:
    """Everything there is about one defence, by "target|seed"."""

    pairs: dict[str, list[Pair]]
    attacks: dict[str, dict[str, dict[str, bool]]]
    """Cell -> attack -> case -> broken; only cases that count and are decided."""
    plain: dict[str, list[str]]
    """Cell -> the cases that count for the plain prompts, decided or not: those of every union."""
    cost: list[tuple[int, float]]
    """UNet evaluations and seconds of every erasure."""


def records_of(found: Found) -> dict[str, Any]:
    """Per cell: axis -> case -> [valid, shows what was asked for, the base model shows it], and attack -> case -> broken."""
    return {
        cell: {
            "cases": {
                axis: {r.case_id: [r.valid, r.hit, base.hit] for r, base in pairs if r.axis == axis}
                for axis in dict.fromkeys(r.axis for r, _ in pairs)
            },
            "attacks": found.attacks[cell],
        }
        for cell, pairs in found.pairs.items()
    }


Broken = dict[str, dict[str, bool]]
"""Cell -> case -> broken."""


def union(found: Found, labels: Sequence[str]) -> Broken:
    """A case is broken when one of the attacks breaks it, and undecided when none of them saw a valid image: the rule of
    :func:`efface.evaluation.attacked.summarise_attacks`. Cases are those of the plain prompts."""
    return {
        cell: {
            case: any(attacks.get(n, {}).get(case, False) for n in labels)
            for case in found.plain[cell]
            if any(case in attacks.get(n, {}) for n in labels)
        }
        for cell, attacks in found.attacks.items()
    }


def of_one(found: Found, label: str) -> Broken:
    return {cell: attacks[label] for cell, attacks in found.attacks.items() if label in attacks}


def success_rate(broken: Broken) -> dict[str, Any] | None:
    values = [v for cases in broken.values() for v in cases.values()]
    if not values:
        return None
    tree = by_target({cell: [float(v) for v in cases.values()] for cell, cases in broken.items()})
    return {**wilson(sum(values), len(values)).json(), "clustered": clustered_bootstrap(tree)}


def less(a: Broken, b: Broken) -> dict[str, Any] | None:
    """a minus b on the same target, seed and case. A defence without seeds is compared with its one cell of the target."""
    one = {cell.split("|")[0]: cell for cell in sorted(b, reverse=True)}
    clusters = {}
    for cell, mine in a.items():
        other = b.get(cell) or b.get(one.get(cell.split("|")[0], ""), {})
        clusters[cell] = [float(mine[c]) - float(other[c]) for c in mine if c in other]
    return mean_difference(clusters)


def kept_less(a: Found, b: Found, axes: Sequence[str]) -> dict[str, Any] | None:
    """The same for cases preserved of the axes, or erased and valid of target axes."""

    def cases(found: Found) -> Broken:
        return {
            cell: {p[0].case_id: bool(success(p)) for p in pairs if p[0].axis in axes and p[1].hit}
            for cell, pairs in found.pairs.items()
        }

    return less(cases(a), cases(b))


def result_of(found: Mapping[str, Found], tried: Sequence[str], reference: str) -> dict[str, Any]:
    """Every figure of the tables; ``tried``: the attacks."""
    entries: dict[str, Any] = {}
    for name, one in found.items():
        axes = {axis: rate(one.pairs, (axis,)) for axis in ("direct", "synonym", "implicit", *KEPT)}
        general = [axes[a] for a in ("synonym", "implicit") if axes[a]]
        attacks, controls = (union(one, ("direct", *labels)) for labels in (tried, CONTROLS))
        entries[name] = {
            "cells": len(one.pairs),
            **axes,
            "generality": min(general, key=lambda r: r["value"]) if general else None,
            "attacked": success_rate(attacks),
            "controls": success_rate(controls),
            "excess": less(attacks, controls),
            "single": {label: success_rate(of_one(one, label)) for label in ("direct", *tried, *CONTROLS, "never_learned")},
            "cost": {k: sum(c[i] for c in one.cost) / len(one.cost) for i, k in enumerate(("evals", "seconds"))}
            if one.cost
            else None,
        }
    minus = {}
    if reference in found:
        head = found[reference]
        labels = ("direct", *tried)
        for name, one in found.items():
            if name not in (reference, "none", "gold"):
                minus[name] = {
                    "attacked": less(union(head, labels), union(one, labels)),
                    **{a: less(of_one(head, a), of_one(one, a)) for a in ("unlearndiff", "concept_inversion") if a in tried},
                    **{what: kept_less(head, one, axes) for what, axes in COMPARED.items()},
                }
    return {"attacks": list(tried), "defences": entries, "reference": reference, "minus": minus}


ATTACKS_SHOWN = ("group", "unlearndiff", "concept_inversion", "seed_search")
"""The attacks of the page's small table; all of them are in its CSV file."""


def markdown(result: Mapping[str, Any], page: Path | None = None) -> str:
    """Small tables with a sentence each; ``page``: where they are put, which then links the CSV files of :func:`sheets`."""
    entries = result["defences"]
    shown = [a for a in ATTACKS_SHOWN if any(e["single"].get(a) for e in entries.values())]
    speed = result["milliseconds"]
    lines = [
        f"The targets are {', '.join(result['targets'])}; training and attack seeds {', '.join(map(str, result['seeds']))}; "
        f"evaluation profile `{result['profile']}`. Each attack and each control spends {result['budget']} UNet evaluations per "
        f"case on {result['cases']} cases of every target and seed. These are icons drawn by the miniature and not by Stable "
        "Diffusion: compare methods, not levels.",
        "",
        "The first table shows what each defence erases and keeps when nobody attacks. Direct and generality (the worse "
        "of synonym "
        "and implicit): the share erased *and* valid. Near, trap and far: the share preserved. Only cases that the unmodified "
        "model gets right count.",
        "",
        *lines_of(
            ["defence", "direct", "generality", *KEPT, "UNet evaluations"],
            [
                [
                    name,
                    *(short(e[k]) for k in ("direct", "generality", *KEPT)),
                    f"{e['cost']['evals']:,.0f}" if e["cost"] else "0",
                ]
                for name, e in entries.items()
            ],
        ),
        "",
        "## Each attack",
        "",
        "This table shows attack success rates: the share of cases that are broken, so low is good for the defence. *Any attack* "
        f"counts a case when the plain prompt or one of {', '.join(result['attacks'])} brings the target back. *Any "
        "control* does "
        f"the same for the plain prompt, {' and '.join(CONTROLS)}. Attacks by other words count only where the original "
        "model draws "
        "the target for the same words and seed.",
        "",
        *lines_of(
            ["defence", "any attack", "any control", *shown],
            [
                [name, counted(e["attacked"]), counted(e["controls"]), *(counted(e["single"].get(a)) for a in shown)]
                for name, e in entries.items()
            ],
        ),
        "",
        *sources(page, "robust", {"": "rates of every attack", "differences": "paired differences"}),
        "This table shows what a defence costs: seconds of training on one thread of a busy machine"
        + (
            ", and the extra processor time of one image on one thread with the defence "
            f"({speed['images']} images drawn {speed['repeats']} times, with and without by turns; without: "
            f"{speed['plain']:.0f} ms)."
            if speed
            else "."
        ),
        "",
        *lines_of(
            ["defence", "cells", "seconds", *(["extra ms per image"] if speed else [])],
            [
                [
                    name,
                    str(e["cells"]),
                    f"{e['cost']['seconds']:.0f}" if e["cost"] else "0",
                    *([f"{speed['extra'][name]:+.1f}"] if speed else []),
                ]
                for name, e in entries.items()
            ],
        ),
        "",
    ]
    never = entries.get("none", {}).get("single", {}).get("never_learned")
    if never:
        lines += [
            "Concept inversion was also run on the gold model, with the target or a concept of its kind that the gold "
            "model never "
            f"saw: it succeeds in {counted(never)} of cases. That much of its success is teaching a concept and not finding it.",
            "",
        ]
    if result["minus"]:
        differences = list(next(iter(result["minus"].values())))
        lines += [
            "## Paired differences",
            "",
            f"This table shows `{result['reference']}` minus the row in percentage points, on the same target, seed and "
            "case, with "
            "the resampled 95 % interval in braces. For any attack and the single attacks, below zero is better for "
            f"`{result['reference']}`: it is broken less often. For erased, kept and far, above zero is better. A difference is "
            "called better or worse only where the interval leaves out zero.",
            "",
            *lines_of(
                ["row", *("any attack" if k == "attacked" else k for k in differences)],
                [[name, *(points(d[k], upwards=k in COMPARED) for k in differences)] for name, d in result["minus"].items()],
            ),
            "",
        ]
    return "\n".join(lines)


def sheets(result: Mapping[str, Any]) -> dict[str, str]:
    """The CSV files behind the tables: one row per defence and rate, one per difference."""
    rates = []
    for name, e in result["defences"].items():
        named = {k: e.get(k) for k in ("direct", "generality", "attacked", "controls", *KEPT)}
        named |= {f"attack: {label}": r for label, r in e["single"].items() if r}
        cost = [f"{e['cost']['evals']:.0f}", f"{e['cost']['seconds']:.0f}"] if e["cost"] else ["0", "0"]
        extra = f"{result['milliseconds']['extra'][name]:+.1f}" if result["milliseconds"] else ""
        rates += [[name, what, *rate_fields(r), str(e["cells"]), *cost, extra] for what, r in named.items()]
    minus = [
        [result["reference"], n, what, *point_fields(d)] for n, found in result["minus"].items() for what, d in found.items()
    ]
    return {
        "": sheet(["defence", "rate", *RATE_FIELDS, "cells", "unet_evaluations", "seconds", "extra_ms"], rates),
        "differences": sheet(["reference", "defence", "what", *POINT_FIELDS], minus),
    }
