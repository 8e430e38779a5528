"""The table of docs/results.md: every method and the trivial entrants, several targets and training seeds, on the miniature.

    python benchmarks/methods.py [--quick] [--json] [--out runs/methods] [--targets NAME ...] [--seeds 0 1 2] [--docs FILE]

A finished (target, seed) cell is not computed again: rows are kept under --out and the table is made from rows alone.
Rates pool cases over targets and training seeds; uce, none, noise and blocklist are there for the first seed only. The
interval in brackets is Wilson over cases, the one in braces resamples (target, seed) cells and then cases, because images
of one erased model are not independent.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from efface import api
from efface.config import build_method
from efface.errors import EvaluationError
from efface.files import write_text
from efface.methods import METHODS
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.patches import Patch
from efface.records import Row, read_rows
from efface.statistics import clustered_bootstrap, wilson

TARGETS = ("fire engine", "dog", "palm tree")
AXES = ("direct", "synonym", "implicit", "near", "trap", "far")


def erase_all(model: DiffusionModel, target: str, seed: int, first: bool, folder: Path, steps: int | None) -> list[Patch]:
    """One patch per method, kept on disk beside its seconds. Methods without a seed are run for the first seed only:
    counting the same patch three times would shrink its interval without telling anything new."""
    patches = []
    for name, cls in METHODS.items():
        path = folder / f"{name}.safetensors"
        seeded = "seed" in cls.__dataclass_fields__
        if not seeded and not first:
            continue
        if not path.is_file():
            settings: dict[str, Any] = {"seed": seed} if seeded else {}
            if steps is not None and "steps" in cls.__dataclass_fields__:
                settings["steps"] = steps
            start = time.perf_counter()
            patch = api.erase(model, build_method(name, preset="mini", settings=settings), targets=[target])
            patch.save(path)
            write_text(path.with_suffix(".seconds"), f"{time.perf_counter() - start:.3f}\n")
        patches.append(Patch.load(path))
    return patches


def run(out: Path, targets: list[str], seeds: list[int], profile: str, steps: int | None) -> dict[str, Any]:
    model = load_model("mini")
    cells: dict[str, dict[str, list[tuple[Row, Row]]]] = defaultdict(lambda: defaultdict(list))
    cost: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for target in targets:
        for seed in seeds:
            folder = out / f"{target.replace(' ', '-')}-{seed}"
            first = seed == seeds[0]
            patches = erase_all(model, target, seed, first, folder, steps)
            named = [(p.card.method, p) for p in patches[1:]]
            evaluation = folder / f"evaluation-{profile}"
            api.evaluate(model, patches[0], out=evaluation, profile=profile, others=named, trivial=first)
            rows = read_rows(evaluation)
            base = {r.case_id: r for r in rows if r.entrant == "none"}
            for row in rows:
                if first or row.entrant != "none":
                    cells[row.entrant][f"{target} {seed}"].append((row, base[row.case_id]))
            for patch in patches:
                seconds = float((folder / f"{patch.card.method}.seconds").read_text())
                cost[patch.card.method].append((patch.card.cost["forward"], seconds))
    table = {entrant: {axis: rate(cells[entrant], axis) for axis in AXES} for entrant in cells}
    return {
        "targets": targets,
        "seeds": seeds,
        "profile": profile,
        "threads": torch.get_num_threads(),
        "table": table,
        "cost": {m: {"evals": sum(e for e, _ in v) / len(v), "seconds": sum(s for _, s in v) / len(v)} for m, v in cost.items()},
        "base": {axis: base_rate(cells["none"], axis) for axis in AXES},
    }


def rate(cells: dict[str, list[tuple[Row, Row]]], axis: str) -> dict[str, Any] | None:
    """Headline rate of an axis over all cells: erased and valid on target axes, preserved on keep axes."""
    target_axis = axis in ("direct", "synonym", "implicit")
    clusters = {
        name: [float((r.valid and not r.hit) if target_axis else r.hit) for r, b in pairs if r.axis == axis and b.hit]
        for name, pairs in cells.items()
    }
    values = [v for group in clusters.values() for v in group]
    invalid = sum(not r.valid for pairs in cells.values() for r, b in pairs if r.axis == axis and b.hit)
    if not values:
        return None
    return {**wilson(int(sum(values)), len(values), invalid).json(), "clustered": clustered_bootstrap(clusters)}


def base_rate(cells: dict[str, list[tuple[Row, Row]]], axis: str) -> dict[str, Any] | None:
    rows = [r for pairs in cells.values() for r, _ in pairs if r.axis == axis]
    return wilson(sum(r.hit for r in rows), len(rows)).json() if rows else None


def cell_text(r: dict[str, Any] | None) -> str:
    if r is None:
        return "not measured"
    text = f"{100 * r['value']:.0f}% [{100 * r['low']:.0f}, {100 * r['high']:.0f}]"
    if r.get("clustered"):
        text += f" {{{100 * r['clustered'][0]:.0f}, {100 * r['clustered'][1]:.0f}}}"
    return text + f" {r['k']}/{r['n']}" + (f", {r['invalid']} invalid" if r.get("invalid") else "")


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Methods side by side on the miniature",
        "",
        f"Targets {', '.join(result['targets'])}; training seeds {', '.join(map(str, result['seeds']))}; "
        f"profile `{result['profile']}`; "
        "made by `python benchmarks/methods.py --docs docs/results.md`. Rates count cases the base model gets right: target axes "
        "(direct, synonym, implicit) the share that is erased *and* valid, keep axes (near, trap, far) the share preserved. "
        "[Wilson over cases] {resampled by (target, seed), then case} k/n. On target axes an invalid image is no erasure.",
        "",
        f"Seconds: wall clock with {result['threads']} thread(s) on a machine that may have been busy.",
        "",
        "These are icons on a miniature, not Stable Diffusion: compare methods, not levels.",
        "",
        "| entrant | " + " | ".join(AXES) + " | UNet evaluations | seconds |",
        "|---|" + "---|" * (len(AXES) + 2),
    ]
    for entrant, axes in result["table"].items():
        cost = result["cost"].get(entrant)
        spent = f"{cost['evals']:,.0f} | {cost['seconds']:.1f}" if cost else "- | -"
        lines.append(f"| {entrant} | " + " | ".join(cell_text(axes[a]) for a in AXES) + f" | {spent} |")
    lines += ["", "The base model itself draws the concept in:", "", "| " + " | ".join(AXES) + " |", "|" + "---|" * len(AXES)]
    lines.append("| " + " | ".join(cell_text(result["base"][a]) for a in AXES) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: one target, one seed, 10 steps, profile smoke")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--profile", default="mini-lite")
    parser.add_argument("--docs", type=Path, help="write the table as a page")
    args = parser.parse_args()
    try:
        if args.quick:
            result = run(args.out / "quick", args.targets[:1], [0], "smoke", 10)
        else:
            result = run(args.out, args.targets, args.seeds, args.profile, None)
    except EvaluationError as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    if args.docs:
        write_text(args.docs, markdown(result))
    print(json.dumps(result) if args.json else markdown(result))


if __name__ == "__main__":
    main()
