"""The same methods on both miniatures, and whether they come out in the same order.

    python benchmarks/flow.py [--quick] [--json] [--out DIR] [--targets NAME ...] [--entrants NAME ...] [--profile PROFILE]
                              [--docs docs/flow.md]

Runs ``--table flow`` of benchmarks/methods.py on ``mini`` (a UNet that predicts noise) and on ``mini-flow`` (the transformer of
Stable Diffusion 3, trained as a flow): the same world, text encoder, VAE, suite and detectors, one training seed. Kendall's tau-b
compares the orders of the methods by what they erase and by what they preserve; its interval resamples targets, then cases, of
both miniatures together. With few targets and six methods it is wide, and says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from methods import TABLES, collect, run
from table import KEPT_AXES, TARGET_AXES, into_page, lines_of, rate, success

from efface.evaluation.profiles import PROFILES, Profile

PROFILES["flow"] = Profile("flow", 12, 4.0, {"direct": 16, "synonym": 8, "implicit": 8, "near": 16, "trap": 4, "far": 12})
MODELS = ("mini", "mini-flow")
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
    header = ["method", *(f"{side}, {model}" for side in SIDES for model in MODELS)]
    rows = [[name, *(told(rates[model][name][side]) for side in SIDES for model in MODELS)] for name in rates[MODELS[0]]]
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
    parser.add_argument("--quick", action="store_true", help="two methods, one target, few steps, profile smoke")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/flow"))
    parser.add_argument("--targets", nargs="+", default=list(TABLES["flow"].targets))
    parser.add_argument("--entrants", nargs="+", default=list(TABLES["flow"].rows), choices=list(TABLES["flow"].rows))
    parser.add_argument("--profile", default="flow", choices=list(PROFILES))
    parser.add_argument("--docs", type=Path, help="put the tables between the page's markers")
    args = parser.parse_args()
    names, targets, profile, steps = args.entrants, args.targets, args.profile, None
    if args.quick:
        names, targets, profile, steps = ["naive", "uce"], targets[:1], "smoke", 4
    out = args.out / "quick" if args.quick else args.out
    tables = {m: run(out / m, "flow", targets, [0], names, profile, steps, 1, m) for m in MODELS}
    cells = {m: collect(out / m, targets, [0], profile)[0] for m in MODELS}
    rates = {m: {n: {s: rate(cells[m][n], axes) for s, axes in SIDES.items()} for n in names} for m in MODELS}
    taus = {side: agreement([successes(cells[m], names, axes) for m in MODELS], names, targets) for side, axes in SIDES.items()}
    text = page(rates, taus, targets, profile)
    if args.docs:
        into_page(args.docs, "flow", text)
    print(json.dumps({"tables": tables, "rates": rates, "tau": taus}) if args.json else text)


if __name__ == "__main__":
    main()
