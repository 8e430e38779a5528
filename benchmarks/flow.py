"""The same methods on both miniatures, and whether they come out in the same order, from the bench of the plan flow.

    python benchmarks/flow.py DIR [--json] [--docs docs/flow.md]

``mini`` is a UNet that predicts noise, ``mini-flow`` the transformer of Stable Diffusion 3, trained as a flow: the same world,
text encoder, VAE, suite and detectors, one training seed. Kendall's tau-b compares the orders of the methods by what they erase
and by what they preserve; its interval resamples targets, then cases, of both miniatures together. With few targets and six
methods it is wide, and says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from from_bench import pairs_of, read
from table import KEPT_AXES, TARGET_AXES, into_page, lines_of, rate, success

SIDES = {"erased": TARGET_AXES, "preserved": KEPT_AXES}
"""What the orders are compared by: erased and valid of direct, synonym and implicit prompts; preserved of near and trap."""
REPLICATES = 1000


def tau_b(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b: pairs in the same order minus pairs in opposite order, over the geometric mean of the pairs that are not
    tied in a and in b. None where one of them orders nothing."""
    signs = [((x > y) - (x < y), (u > v) - (u < v)) for (x, u), (y, v) in itertools.combinations(zip(a, b, strict=True), 2)]
    norms = [sum(s[i] != 0 for s in signs) for i in (0, 1)]
    return sum(s * t for s, t in signs) / (norms[0] * norms[1]) ** 0.5 if all(norms) else None


Successes = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Entrant -> target -> case -> success."""


def successes(cells: Mapping[str, Any], names: Sequence[str], axes: Sequence[str]) -> Successes:
    return {
        name: {
            cell.split("|")[0]: {p[0].case_id: success(p) for p in pairs if p[0].axis in axes and p[1].hit}
            for cell, pairs in cells[name].items()
        }
        for name in names
    }


def agreement(found: Sequence[Successes], names: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    """tau-b of the rates of all methods on the two models, and its 95 % interval; a resample has the same cases for every
    method."""

    def tau(drawn: Sequence[str], rng: random.Random | None) -> float | None:
        rates = []
        for one in found:
            values: dict[str, list[float]] = {name: [] for name in names}
            for target in drawn:
                cases = sorted(one[names[0]][target])
                for case in cases if rng is None else rng.choices(cases, k=len(cases)):
                    for name in names:
                        values[name].append(one[name][target][case])
            rates.append([sum(v) / len(v) for v in values.values()])
        return tau_b(*rates)

    rng = random.Random(0)
    resampled = sorted(t for _ in range(REPLICATES) if (t := tau(rng.choices(list(targets), k=len(targets)), rng)) is not None)
    low, high = (resampled[round(q * (len(resampled) - 1))] for q in (0.025, 0.975))
    return {"tau": tau(targets, None), "low": low, "high": high, "methods": len(names), "targets": len(targets)}


def told(r: Mapping[str, Any] | None) -> str:
    """A rate with its Wilson interval over cases, in percent, and its counts."""
    if r is None:
        return "not measured"
    counts = f"{r['k']}/{r['n']}" + (f", {r['invalid']} invalid" if r["invalid"] else "")
    return f"{100 * r['value']:.0f}% [{100 * r['low']:.0f}, {100 * r['high']:.0f}] {counts}"


def page(rates: Mapping[str, Any], taus: Mapping[str, Mapping[str, Any]], targets: Sequence[str], profile: str) -> str:
    header = ["method", *(f"{side}, {model}" for side in SIDES for model in rates)]
    names = list(next(iter(rates.values())))
    rows = [[name, *(told(found[name][side]) for side in SIDES for found in rates.values())] for name in names]
    lines = [
        f"Targets {', '.join(targets)}; one training seed; profile `{profile}`. Erased: direct, synonym and implicit prompts "
        "pooled, erased *and* valid; preserved: near and trap. In brackets the 95 % Wilson interval over cases.",
        "",
        *lines_of(header, rows),
        "",
        "Kendall's tau-b of the two orders of the methods; its interval resamples targets and cases:",
        "",
        *lines_of(
            ["by", "tau-b", "95 % interval", "methods", "targets"],
            [
                [
                    s,
                    "no order" if t["tau"] is None else f"{t['tau']:+.2f}",
                    f"{t['low']:+.2f} to {t['high']:+.2f}",
                    str(t["methods"]),
                    str(t["targets"]),
                ]
                for s, t in taus.items()
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--docs", type=Path, help="put the tables between the page's markers")
    args = parser.parse_args()
    plan, placed = read(args.folder, "flow")
    facts = plan["plan"]
    names, targets = [e["label"] for e in facts["entrants"] if e["method"]], [group[0] for group in facts["targets"]]
    cells = {m: pairs_of([p for p in placed if p.place["model"] == m])[1.0] for m in facts["models"]}
    rates = {m: {n: {s: rate(found[n], axes) for s, axes in SIDES.items()} for n in names} for m, found in cells.items()}
    taus = {
        s: agreement([successes(found, names, axes) for found in cells.values()], names, targets) for s, axes in SIDES.items()
    }
    text = page(rates, taus, targets, facts["profile"]["name"])
    if args.docs:
        into_page(args.docs, "flow", text)
    print(json.dumps({"rates": rates, "tau": taus}) if args.json else text)


if __name__ == "__main__":
    main()
