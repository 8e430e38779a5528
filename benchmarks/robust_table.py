"""What is counted over the cells of defences under attack, and how it is printed; see robust.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from table import Pair, by_target, lines_of, mean_difference, points, rate, rate_text, success

from efface.equations.statistics import clustered_bootstrap, wilson

CONTROLS = ("random_token", "seed_search")
KEPT = ("near", "trap", "far")


@dataclass
class Found:
    """Everything there is about one defence, by "target|seed"."""

    pairs: dict[str, list[Pair]]
    attacks: dict[str, dict[str, dict[str, bool]]]
    """Cell -> attack -> case -> broken; only cases that count."""
    cost: list[tuple[int, float]]
    milliseconds: list[dict[str, float]]


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
    """A case is broken when one of the attacks breaks it. Cases are those of the plain prompts."""
    return {
        cell: {case: any(attacks.get(n, {}).get(case, False) for n in labels) for case in attacks["direct"]}
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
            "milliseconds": {k: median(m[k] for m in one.milliseconds) for k in ("extra", "plain")} if one.milliseconds else None,
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
                    "erased": kept_less(head, one, ("direct", "synonym", "implicit")),
                    "kept": kept_less(head, one, ("near", "trap")),
                    "far": kept_less(head, one, ("far",)),
                }
    return {"attacks": list(tried), "defences": entries, "reference": reference, "minus": minus}


KEEP = ("erased", "kept", "far")
"""Differences that are good above zero."""


def verdict(d: Mapping[str, Any] | None, upwards: bool) -> str:
    """A difference in points; better or worse by the direction that is good."""
    text = points(d)
    return text if upwards else text.replace("better", "?").replace("worse", "better").replace("?", "worse")


def markdown(result: Mapping[str, Any]) -> str:
    header = [
        "defence",
        "cells",
        "direct",
        "generality",
        "attacked",
        "controls",
        *KEPT,
        "UNet evaluations",
        "seconds",
        "extra ms",
    ]
    attacks = [a for a in ("direct", *result["attacks"], *CONTROLS) if any(e["single"][a] for e in result["defences"].values())]
    table, single = [], []
    for name, e in result["defences"].items():
        cost, extra = e["cost"], e["milliseconds"]
        table.append(
            [
                name,
                str(e["cells"]),
                *(rate_text(e[k]) for k in ("direct", "generality", "attacked", "controls", *KEPT)),
                *([f"{cost['evals']:,.0f}", f"{cost['seconds']:.0f}"] if cost else ["0", "0"]),
                f"{extra['extra']:+.1f}" if extra else "not measured",
            ]
        )
        single.append([name, *(rate_text(e["single"][a]) for a in attacks)])
    plain = [e["milliseconds"]["plain"] for e in result["defences"].values() if e["milliseconds"]]
    lines = [
        f"Targets {', '.join(result['targets'])}; training and attack seeds {', '.join(map(str, result['seeds']))}; profile "
        f"`{result['profile']}`; attacks on {result['cases']} cases with {result['budget']} UNet evaluations per case each, "
        "controls alike. Direct, generality (the worse family of synonym and implicit): erased *and* valid; near, trap, far: "
        "preserved; of the cases the base model gets right. Attacked: cases in which the plain prompt or one of the attacks "
        f"{', '.join(result['attacks'])} brings the target back; controls: the plain prompt, {' or '.join(CONTROLS)}. Low is "
        "good there. [Wilson over cases] {resampled by target, then seed, then case} k/n. Extra ms: processor time of one image "
        f"on one thread, with the defence less without, {result['images']} images {result['repeats']} times by turns"
        + (f" (without: {median(plain):.0f} ms)." if plain else "."),
        "",
        "These are icons on a miniature, not Stable Diffusion: compare methods, not levels.",
        "",
        *lines_of(header, table),
        "",
        "## Each attack",
        "",
        "Cases broken. The wordings count where the original model draws the target for the same words and seed.",
        "",
        *lines_of(["defence", *attacks], single),
        "",
    ]
    never = result["defences"].get("none", {}).get("single", {}).get("never_learned")
    if never:
        lines += [
            "Concept inversion on the gold model, with the target or one of its kind, which it never saw: "
            f"{rate_text(never)}. So much of its success is teaching and not finding.",
            "",
        ]
    if result["minus"]:
        shown = list(next(iter(result["minus"].values())))
        lines += [
            "## Paired differences",
            "",
            f"`{result['reference']}` minus the row in percentage points, on the same target, seed and case. Attacked and the "
            "single attacks: below zero it withstands more; erased and kept: above zero it erases or keeps more. Bold where the "
            "interval leaves out zero.",
            "",
            *lines_of(
                ["row", *shown], [[name, *(verdict(d[k], k in KEEP) for k in shown)] for name, d in result["minus"].items()]
            ),
            "",
        ]
    return "\n".join(lines)
