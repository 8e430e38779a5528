"""Every method and the trivial entrants, several targets and training seeds, on the miniature.

    python benchmarks/methods.py [--table methods|robust|options] [--quick] [--json] [--out DIR] [--targets NAME ...]
                                 [--seeds 0 1 2] [--entrants NAME ...] [--workers 2] [--docs FILE]
                                 [--model mini|mini-flow]

``--table methods``: methods side by side, AP's paired difference to each, and what is preserved at matched erasure. ``--table
robust``: the robust family on the same targets, RAP's paired difference to each. ``--table options``: AP, ESD and AGE drawing
their latents from the student as in the papers, and each cheaper option, paired with it; an option is called equivalent where
erasure and preservation are, with 95 % confidence, less than the margin worse. ``--table
flow``: the rows of docs/flow.md; see benchmarks/flow.py.

A finished (target, seed) cell is not computed again: patches and rows are kept under --out and the tables are made from them
alone, with the targets and seeds that are there. Deterministic entrants are there for the first seed only: counting one patch
three times would shrink its interval without telling anything new.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from table import (
    KEPT_AXES,
    POINT_FIELDS,
    RATE_FIELDS,
    TARGET_AXES,
    Pair,
    base_rate,
    counted,
    difference,
    into_page,
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

from efface import verbs
from efface.errors import EvaluationError
from efface.evaluation.profiles import PROFILES, Profile
from efface.evaluation.records import read_rows
from efface.io.files import write_text
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.mini.world import load_world
from efface.patches import Patch
from efface.registry import METHODS, build_method, preset_for
from efface.verbs.subject import suite_for

AXES = ("direct", "synonym", "implicit", "near", "trap", "far")
STRENGTHS, LEVEL = (0.5, 0.75, 1.0, 1.25), 0.9
QUICK_STEPS = 4

PROFILES["table"] = Profile("table", 12, 4.0, {"direct": 16, "synonym": 8, "implicit": 8, "near": 24, "trap": 8, "far": 16})
# The first cases of "table", so that strength 1 is already there.
PROFILES["curve"] = Profile("curve", 12, 4.0, {"direct": 12, "near": 16, "trap": 6})


@dataclass(frozen=True)
class Contender:
    """One row: a method's name and options, for how many training seeds it is run (0: all), and the row it is compared with."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 0
    against: str = "ap"
    curve: bool = False
    """Evaluated at several strengths, for the matched comparison."""


@dataclass(frozen=True)
class Table:
    targets: tuple[str, ...]
    rows: Mapping[str, Contender]
    quick: tuple[str, ...]
    margin: float | None = None
    """Equivalence: an option may be this much worse."""


EXACT = {"sampler": "student"}
TARGETS = ("fire engine", "dog", "palm tree", "castle", "guitar", "crossed swords")
TABLES = {
    "methods": Table(
        TARGETS,
        {
            # These differ in the preservation term alone.
            "naive": Contender("naive", curve=True),
            "l2": Contender("l2", curve=True),
            "neutral": Contender("neutral", curve=True),
            "fixed": Contender("fixed"),
            "ap-random": Contender("ap", {"search": "random"}),
            "ap": Contender("ap", curve=True),
            "ap-exhaustive": Contender("ap", {"search": "exhaustive"}),
            # Other methods.
            "esd": Contender("esd", curve=True),
            "age": Contender("age", curve=True),
            "ap-pgd": Contender("ap", {"search": "pgd", "search.ascents": 10, "lam": 0.01}, seeds=1),
            "kpop": Contender("kpop", seeds=1),
            "ablation": Contender("ablation", seeds=1),
            "forget-me-not": Contender("forget-me-not", seeds=1),
            "uce": Contender("uce"),
            "rece": Contender("rece"),
        },
        ("naive", "esd", "ap", "uce"),
    ),
    # Does a defence pay with what an attack never looks at? The same targets, without attacks.
    "robust": Table(
        TARGETS,
        {
            "esd": Contender("esd", against="rap"),
            "ap": Contender("ap", against="rap"),
            "rap": Contender("rap", against="rap"),
            "rap-attack": Contender("rap-attack", seeds=1, against="rap"),
            "stereo": Contender("stereo", seeds=1, against="rap"),
            "advunlearn": Contender("advunlearn", seeds=1, against="rap"),
            "trce": Contender("trce", seeds=1, against="rap"),
            "realera": Contender("realera", seeds=1, against="rap"),
            "realera, adversarial": Contender("realera", {"mode": "adversarial"}, seeds=1, against="rap"),
        },
        ("esd", "trce"),
    ),
    # Targets that no table of results uses: defaults are chosen here.
    "options": Table(
        ("rose", "rabbit"),
        {
            "ap, student": Contender("ap", EXACT),
            "ap, pool": Contender("ap", {"sampler": "pool"}, against="ap, student"),
            "ap, harvest": Contender("ap", {"sampler": "harvest"}, against="ap, student"),
            "ap, noised": Contender("ap", {"sampler": "noised"}, against="ap, student"),
            "ap, few steps": Contender("ap", {**EXACT, "solver": "dpm", "sampling_steps": 6}, against="ap, student"),
            "ap, pool, joint": Contender("ap", {"sampler": "pool", "search.update": "joint"}, against="ap, student"),
            "ap, fast": Contender(
                "ap",
                {"sampler": "pool", "search.update": "joint", "solver": "dpm", "sampling_steps": 6, "sampler.trajectories": 4},
                against="ap, student",
            ),
            "esd, student": Contender("esd", EXACT, against="esd, student"),
            "esd, pool": Contender("esd", {"sampler": "pool"}, against="esd, student"),
            "age, student": Contender("age", EXACT, against="age, student"),
            "age, pool": Contender("age", {"sampler": "pool"}, against="age, student"),
        },
        ("esd, student", "esd, pool"),
        margin=0.10,
    ),
    # Two ordinary and two reserved concepts, drawn by both miniatures: benchmarks/flow.py compares the two.
    "flow": Table(
        ("dog", "castle", "panda", "trumpet"),
        {name: Contender(name, seeds=1) for name in ("naive", "ap", "esd", "age", "uce", "rap")},
        ("naive", "uce"),
    ),
}


def relative(model: DiffusionModel, target: str) -> str:
    """A concept of the target's group, one that the suite does not ask for where there is one: what row "fixed" preserves."""
    suite, world = suite_for(model, [target]), load_world()
    asked = [n.name for n in (*suite.near, *suite.trap)]
    family = [n for n in world.names("ordinary") if world[n].group == world[target].group and n != target]
    return min(family, key=lambda n: n in asked)


def patch_of(model: DiffusionModel, contender: Contender, target: str, seed: int, steps: int | None, path: Path) -> Patch:
    """The row's patch under the row's name; made once, its seconds kept beside it."""
    if not path.is_file():
        fields = METHODS.find(contender.method).__dataclass_fields__
        settings = {**contender.settings, **({"seed": seed} if "seed" in fields else {})}
        if steps is not None and "steps" in fields:
            settings["steps"] = steps
        preserve = [relative(model, target)] if contender.method == "fixed" else []
        preset, start = preset_for(METHODS.find(contender.method), model), time.perf_counter()
        patch = verbs.erase(
            model, build_method(contender.method, preset=preset, settings=settings), targets=[target], preserve=preserve
        )
        write_text(path.with_suffix(".seconds"), f"{time.perf_counter() - start:.3f}\n")
        patch.save(path)
    patch = Patch.load(path)
    return dataclasses.replace(patch, card=dataclasses.replace(patch.card, method=path.stem))


def run_cell(
    out: Path, table: str, target: str, seed: int, first: bool, names: list[str], profile: str, steps: int | None, source: str
) -> None:
    """Patches of one (target, seed), then one evaluation of all of them, then the strengths."""
    torch.set_num_threads(1)
    model = load_model(source)
    folder = cell_folder(out, target, seed)
    patches: list[Patch] = []
    for name in names:
        contender = TABLES[table].rows[name]
        if first or ("seed" in METHODS.find(contender.method).__dataclass_fields__ and contender.seeds != 1):
            patches.append(patch_of(model, contender, target, seed, steps, folder / f"{name}.safetensors"))

    def measure(rows: list[tuple[str, Patch]], profile: str, trivial: bool) -> None:
        (_, head), *others = rows
        verbs.evaluate(model, head, out=folder / f"evaluation-{profile}", profile=profile, others=others, trivial=trivial)

    measure([(p.card.method, p) for p in patches], profile, first)
    curved = [p for p in patches if TABLES[table].rows[p.card.method].curve]
    if profile == "table" and curved:
        scaled = [(f"{p.card.method}@{s}", p.scaled(s)) for p in curved for s in STRENGTHS if s != 1]
        scaled = [(n, dataclasses.replace(p, card=dataclasses.replace(p.card, method=n))) for n, p in scaled]
        measure(scaled, "curve", False)


def cell_folder(out: Path, target: str, seed: int) -> Path:
    return out / f"{target.replace(' ', '-')}-{seed}"


Found = dict[str, dict[str, list[Pair]]]
"""entrant -> "target|seed" -> (row, the base model's row)."""


def collect(out: Path, targets: list[str], seeds: list[int], profile: str) -> tuple[Found, dict[str, Any]]:
    cells: Found = defaultdict(lambda: defaultdict(list))
    cost: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for target in targets:
        for seed in seeds:
            folder = cell_folder(out, target, seed)
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


def result_of(out: Path, table: str, targets: list[str], seeds: list[int], profile: str) -> dict[str, Any]:
    cells, cost = collect(out, targets, seeds, profile)
    curved, _ = collect(out, targets, seeds, "curve")
    return result_from(table, targets, seeds, profile, cells, cost, curved)


def result_from(
    table: str, targets: list[str], seeds: list[int], profile: str, cells: Found, cost: dict[str, Any], curved: Found
) -> dict[str, Any]:
    """Every figure of the tables from the cells, wherever they come from; ``curved``: "entrant@strength" -> its cells."""
    rows = TABLES[table].rows
    order = ["none", *(n for n in rows if n in cells), *(n for n in cells if n not in rows and n != "none")]
    pairs = [(rows[n].against, n) for n in order if n in rows and rows[n].against in cells and rows[n].against != n]
    curves = {
        n: {s: curved[f"{n}@{s}"] if s != 1 else cells[n] for s in STRENGTHS} for n in order if f"{n}@{STRENGTHS[0]}" in curved
    }
    return {
        "table": table,
        "targets": targets,
        "seeds": seeds,
        "profile": profile,
        "cells": {n: len(cells[n]) for n in order},
        "rates": {n: {axis: rate(cells[n], (axis,)) for axis in AXES} for n in order},
        "cost": cost,
        "base": {axis: base_rate(cells["none"], axis) for axis in AXES},
        "minus": {
            n: {
                "against": a,
                "erased": difference(cells[a], cells[n], TARGET_AXES),
                "kept": difference(cells[a], cells[n], KEPT_AXES),
                "far": difference(cells[a], cells[n], ("far",)),
            }
            for a, n in pairs
        },
        "matched": {n: matched(curves[a], curves[n], LEVEL) for a, n in pairs if a in curves and n in curves},
        "margin": TABLES[table].margin,
    }


def run(
    out: Path,
    table: str,
    targets: list[str],
    seeds: list[int],
    names: list[str],
    profile: str,
    steps: int | None,
    workers: int,
    source: str = "mini",
) -> dict[str, Any]:
    jobs = [(out, table, t, s, s == seeds[0], names, profile, steps, source) for s in seeds for t in targets]
    if workers == 1:
        for job in jobs:
            run_cell(*job)
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for future in [pool.submit(run_cell, *job) for job in jobs]:
                future.result()
    return result_of(out, table, targets, seeds, profile)


def verdict(d: Mapping[str, Any], margin: float) -> str:
    """Whether an option is less than the margin worse than its reference on both axes, with 95 % confidence."""
    bounds = [d[key]["clustered"][1] for key in ("erased", "kept") if d[key] and d[key]["clustered"]]
    return "equivalent" if len(bounds) == 2 and max(bounds) < margin else "not shown"


MADE_ON = "These are icons drawn by the miniature and not by Stable Diffusion: compare methods, not levels."


def markdown(result: Mapping[str, Any], page: Path | None = None) -> str:
    """Small tables with a sentence each; ``page``: where they are put, which then links the CSV files of :func:`sheets`."""
    axes, margin, name = list(result["base"]), result["margin"], result["table"]
    drawn = [f"{axis} {counted(result['base'][axis])}" for axis in axes if result["base"][axis]]
    lines = [
        f"The targets are {', '.join(result['targets'])}; training seeds {', '.join(map(str, result['seeds']))}; "
        "evaluation profile "
        f"`{result['profile']}`. {MADE_ON}",
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
            f"Each patch is also evaluated at {', '.join(map(str, STRENGTHS))} times its strength (profile `curve`). This "
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
    minus = [
        [d["against"], n, what, *point_fields(d[what])] for n, d in result["minus"].items() for what in ("erased", "kept", "far")
    ]
    return {
        "": sheet(["entrant", "axis", *RATE_FIELDS, "cells", "unet_evaluations", "seconds"], [*rates, *base]),
        "differences": sheet(["reference", "entrant", "what", *POINT_FIELDS], minus),
    }


def _cost(cost: Mapping[str, float] | None) -> list[str]:
    return [f"{cost['evals']:.0f}", f"{cost['seconds']:.1f}"] if cost else ["", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="methods", choices=list(TABLES))
    parser.add_argument(
        "--quick", action="store_true", help=f"under a minute: few rows, one target and seed, {QUICK_STEPS} steps, profile smoke"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="[runs/TABLE]")
    parser.add_argument("--targets", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--entrants", nargs="+", help="rows of the table [all]")
    parser.add_argument("--profile", default="table", choices=list(PROFILES))
    parser.add_argument("--model", default="mini", choices=("mini", "mini-flow"))
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--docs", type=Path, help="put the tables between the page's markers")
    args = parser.parse_args()
    table, out = (
        TABLES[args.table],
        args.out or Path("runs") / (args.table if args.model == "mini" else f"{args.table}-{args.model}"),
    )
    targets = args.targets or list(table.targets)
    unknown = [n for n in args.entrants or () if n not in table.rows]
    if unknown:
        parser.error(f"unknown entrant {unknown[0]!r}; the table has {', '.join(table.rows)}.")
    try:
        if args.quick:
            names = args.entrants or list(table.quick)
            result = run(out / "quick", args.table, targets[:1], [0], names, "smoke", QUICK_STEPS, 1, args.model)
        else:
            names = args.entrants or list(table.rows)
            result = run(out, args.table, targets, args.seeds, names, args.profile, None, args.workers, args.model)
    except EvaluationError as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    if args.docs:
        into_page(args.docs, args.table, markdown(result, args.docs), sheets(result))
    print(json.dumps(result) if args.json else markdown(result))


if __name__ == "__main__":
    main()
