"""Every method and the trivial entrants, several targets and training seeds, on the miniature.

    python benchmarks/methods.py [--quick] [--json] [--out runs/methods] [--targets NAME ...] [--seeds 0 1 2]
                                 [--entrants NAME ...] [--workers 2] [--docs FILE]

A finished (target, seed) cell is not computed again: patches and rows are kept under --out and the tables are made from them
alone, with the targets and seeds that are there. The interval in brackets is Wilson over cases, the one in braces resamples
targets, then training seeds, then cases, because images of one erased model are not independent. Deterministic entrants are there
for the first seed only: counting one patch three times would shrink its interval without telling anything new.

Differences between two methods are paired on the same target, seed and case, and resampled the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from efface import api
from efface.bench.profiles import PROFILES, Profile
from efface.config import build_method, method_class
from efface.errors import EvaluationError
from efface.files import write_text
from efface.models.load import load_model
from efface.patches import Patch
from efface.records import Row, read_rows
from efface.statistics import clustered_bootstrap, wilson

TARGETS = ("fire engine", "dog", "palm tree", "castle", "guitar", "crossed swords")
AXES = ("direct", "synonym", "implicit", "near", "trap", "far")
GENERALITY = ("synonym", "implicit")
QUICK_STEPS, QUICK = 4, ["naive", "esd", "ap", "uce"]


@dataclass(frozen=True)
class Contender:
    """One row of the table: a method's name, its options, and for how many training seeds it is run (0: all)."""

    method: str
    settings: Mapping[str, Any]
    seeds: int = 0


CONTENDERS: dict[str, Contender] = {
    # Rows that differ in the preservation term alone.
    "naive": Contender("naive", {}),
    "l2": Contender("l2", {}),
    "neutral": Contender("neutral", {}),
    "ap-random": Contender("ap", {"search": "random"}),
    "ap": Contender("ap", {}),
    "ap-exhaustive": Contender("ap", {"search": "exhaustive"}),
    # Other methods.
    "esd": Contender("esd", {}),
    "age": Contender("age", {}),
    "ap-pgd": Contender("ap", {"search": "pgd", "ascents": 10, "lam": 0.01}, seeds=1),
    "kpop": Contender("kpop", {}, seeds=1),
    "ablation": Contender("ablation", {}, seeds=1),
    "forget-me-not": Contender("forget-me-not", {}, seeds=1),
    "uce": Contender("uce", {}),
}

PROFILES["table"] = Profile("table", 12, 4.0, {"direct": 16, "synonym": 8, "implicit": 8, "near": 24, "trap": 8, "far": 16})
Pair = tuple[Row, Row]


def run_cell(out: Path, target: str, seed: int, first: bool, names: list[str], profile: str, steps: int | None) -> None:
    """Patches of one (target, seed), kept on disk beside their seconds, then one evaluation of all of them."""
    torch.set_num_threads(1)
    model = load_model("mini")
    folder = out / f"{target.replace(' ', '-')}-{seed}"
    patches: list[tuple[str, Patch]] = []
    for name in names:
        contender, path = CONTENDERS[name], folder / f"{name}.safetensors"
        fields = method_class(contender.method).__dataclass_fields__
        if not first and ("seed" not in fields or contender.seeds == 1):
            continue
        if not path.is_file():
            settings = {**contender.settings, **({"seed": seed} if "seed" in fields else {})}
            if steps is not None and "steps" in fields:
                settings["steps"] = steps
            start = time.perf_counter()
            patch = api.erase(model, build_method(contender.method, preset="mini", settings=settings), targets=[target])
            write_text(path.with_suffix(".seconds"), f"{time.perf_counter() - start:.3f}\n")
            patch.save(path)
        patches.append((name, Patch.load(path)))
    evaluation = folder / f"evaluation-{profile}"
    (label, patch), *others = patches
    assert patch.card.method == label, "the first contender goes by its own label"
    api.evaluate(model, patch, out=evaluation, profile=profile, others=others, trivial=first)


def collect(
    out: Path, targets: list[str], seeds: list[int], profile: str
) -> tuple[dict[str, dict[str, list[Pair]]], dict[str, Any]]:
    """entrant -> "target|seed" -> (row, the base model's row), and entrant -> evaluations and seconds."""
    cells: dict[str, dict[str, list[Pair]]] = defaultdict(lambda: defaultdict(list))
    cost: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for target in targets:
        for seed in seeds:
            folder = out / f"{target.replace(' ', '-')}-{seed}"
            if not (folder / f"evaluation-{profile}" / "summary.json").is_file():
                continue
            rows = read_rows(folder / f"evaluation-{profile}")
            base = {r.case_id: r for r in rows if r.entrant == "none"}
            for row in rows:
                if row.entrant not in ("none", "noise", "blocklist") or seed == seeds[0]:
                    cells[row.entrant][f"{target}|{seed}"].append((row, base[row.case_id]))
            for path in folder.glob("*.seconds"):
                spent = Patch.load(path.with_suffix(".safetensors")).card.cost
                cost[path.stem].append((spent.get("forward", 0), float(path.read_text())))
    mean = {m: {"evals": sum(e for e, _ in v) / len(v), "seconds": sum(s for _, s in v) / len(v)} for m, v in cost.items()}
    return cells, mean


def success(pair: Pair) -> float:
    """Erased and valid on target axes, preserved on keep axes."""
    row = pair[0]
    return float((row.valid and not row.hit) if row.axis in ("direct", *GENERALITY) else row.hit)


def by_target(cells: Mapping[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    """Targets of training seeds of cases: how the bootstrap resamples."""
    tree: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for name, values in cells.items():
        if values:
            target, seed = name.split("|")
            tree[target][seed] = values
    return tree


def rate(cells: Mapping[str, list[Pair]], axes: tuple[str, ...]) -> dict[str, Any] | None:
    """Headline rate over all cells, of cases the base model gets right."""
    pairs = {name: [p for p in found if p[0].axis in axes and p[1].hit] for name, found in cells.items()}
    clusters = {name: [success(p) for p in found] for name, found in pairs.items()}
    values = [v for group in clusters.values() for v in group]
    if not values:
        return None
    invalid = sum(not p[0].valid for found in pairs.values() for p in found)
    return {**wilson(int(sum(values)), len(values), invalid).json(), "clustered": clustered_bootstrap(by_target(clusters))}


def difference(a: Mapping[str, list[Pair]], b: Mapping[str, list[Pair]], axes: tuple[str, ...]) -> dict[str, Any] | None:
    """Mean paired difference a - b of successes on the same target, seed and case, with its nested interval."""
    clusters: dict[str, list[float]] = {}
    for name in a.keys() & b.keys():
        other = {p[0].case_id: p for p in b[name]}
        clusters[name] = [success(p) - success(other[p[0].case_id]) for p in a[name] if p[0].axis in axes and p[1].hit]
    values = [v for group in clusters.values() for v in group]
    if not values:
        return None
    return {
        "difference": sum(values) / len(values),
        "n": len(values),
        "clustered": clustered_bootstrap(by_target(dict(sorted(clusters.items())))),
    }


def run(
    out: Path, targets: list[str], seeds: list[int], names: list[str], profile: str, steps: int | None, workers: int
) -> dict[str, Any]:
    jobs = [(out, t, s, s == seeds[0], names, profile, steps) for s in seeds for t in targets]
    if workers == 1:
        for job in jobs:
            run_cell(*job)
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for future in [pool.submit(run_cell, *job) for job in jobs]:
                future.result()
    return result_of(out, targets, seeds, profile)


def result_of(out: Path, targets: list[str], seeds: list[int], profile: str) -> dict[str, Any]:
    cells, cost = collect(out, targets, seeds, profile)
    order = ["none", *(n for n in CONTENDERS if n in cells), *(n for n in cells if n not in CONTENDERS and n != "none")]
    return {
        "targets": targets,
        "seeds": seeds,
        "profile": profile,
        "cells": {n: len(cells[n]) for n in order},
        "table": {n: {axis: rate(cells[n], (axis,)) for axis in AXES} for n in order},
        "cost": cost,
        "base": {axis: base_rate(cells["none"], axis) for axis in AXES},
        "ap_minus": {
            n: {
                "erased": difference(cells["ap"], cells[n], ("direct", *GENERALITY)),
                "kept": difference(cells["ap"], cells[n], ("near", "trap")),
                "far": difference(cells["ap"], cells[n], ("far",)),
            }
            for n in order
            if "ap" in cells and n not in ("none", "ap", "noise", "blocklist")
        },
    }


def base_rate(cells: Mapping[str, list[Pair]], axis: str) -> dict[str, Any] | None:
    rows = [r for pairs in cells.values() for r, _ in pairs if r.axis == axis]
    return wilson(sum(r.hit for r in rows), len(rows)).json() if rows else None


def cell_text(r: Mapping[str, Any] | None) -> str:
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


def markdown(result: Mapping[str, Any]) -> str:
    axes = list(result["base"])
    lines = [
        "# Methods side by side on the miniature",
        "",
        f"Targets {', '.join(result['targets'])}; training seeds {', '.join(map(str, result['seeds']))}; "
        f"profile `{result['profile']}`; "
        "made by `python benchmarks/methods.py --docs docs/results.md`. Rates count cases the base model gets right: target axes "
        "(direct, synonym, implicit) the share that is erased *and* valid, keep axes (near, trap, far) the share preserved. "
        "[Wilson over cases] {resampled by target, then training seed, then case} k/n. On target axes an invalid image is no "
        "erasure. Cells: number of (target, seed) pairs; deterministic entrants and those run for one seed have one per target.",
        "",
        "These are icons on a miniature, not Stable Diffusion: compare methods, not levels.",
        "",
        "| entrant | cells | " + " | ".join(axes) + " | UNet evaluations | seconds |",
        "|---|---|" + "---|" * (len(axes) + 2),
    ]
    for entrant, found in result["table"].items():
        cost = result["cost"].get(entrant)
        spent = f"{cost['evals']:,.0f} | {cost['seconds']:.1f}" if cost else "- | -"
        lines.append(
            f"| {entrant} | {result['cells'][entrant]} | " + " | ".join(cell_text(found[a]) for a in axes) + f" | {spent} |"
        )
    lines += ["", "Seconds: wall clock of `erase` on one thread, two such processes side by side."]
    lines += ["", "The base model itself draws the concept in:", "", "| " + " | ".join(axes) + " |", "|" + "---|" * len(axes)]
    lines.append("| " + " | ".join(cell_text(result["base"][a]) for a in axes) + " |")
    lines += [
        "",
        "## AP against each",
        "",
        "Paired differences AP minus the other in percentage points, on the same target, training seed and case; {95 % interval "
        "by resampling targets, then seeds, then cases}. Erased: direct, synonym and implicit pooled; kept: near and trap. "
        "Better and worse are said where the interval leaves out zero.",
        "",
        "| AP minus | erased | kept | far |",
        "|---|---|---|---|",
    ]
    for name, d in result["ap_minus"].items():
        lines.append(f"| {name} | {points(d['erased'])} | {points(d['kept'])} | {points(d['far'])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help=f"under a minute: four rows, one target and seed, {QUICK_STEPS} steps, profile smoke"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--entrants", nargs="+", choices=list(CONTENDERS), help="rows of the table [all]")
    parser.add_argument("--profile", default="table", choices=list(PROFILES))
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--docs", type=Path, help="write the tables as a page")
    args = parser.parse_args()
    try:
        if args.quick:
            result = run(args.out / "quick", args.targets[:1], [0], args.entrants or QUICK, "smoke", QUICK_STEPS, 1)
        else:
            result = run(args.out, args.targets, args.seeds, args.entrants or list(CONTENDERS), args.profile, None, args.workers)
    except EvaluationError as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    if args.docs:
        write_text(args.docs, markdown(result))
    print(json.dumps(result) if args.json else markdown(result))


if __name__ == "__main__":
    main()
