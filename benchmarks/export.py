"""How small may the file be: erasures written as LoRAs of falling rank, read again and measured.

    python benchmarks/export.py DIR [--plan methods-robust] [--json] [--methods NAME ...] [--docs FILE]

DIR holds the bench of the plan, whose erasures of the first training seed are taken. Every LoRA (diffusers' format, half
precision) is written by efface export, read by efface import, and evaluated on the cases of its patch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from from_bench import read
from table import (
    KEPT_AXES,
    POINT_FIELDS,
    RATE_FIELDS,
    TARGET_AXES,
    Pair,
    difference,
    into_page,
    lines_of,
    point_fields,
    points,
    rate,
    rate_fields,
    sheet,
    sources,
)

from efface import verbs
from efface.evaluation.profiles import PROFILES, Profile
from efface.evaluation.records import read_rows
from efface.models.load import load_model
from efface.patches import Patch
from efface.patches.export import export
from efface.plans.records import Store

METHODS = ("esd", "ap", "rap", "realera")
TOLERANCES = (0.001, 0.1, 0.3, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plan", default="methods-robust", help="name of the plan [methods-robust]")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--docs", type=Path, help="put the table between the page's markers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plan, placed = read(args.folder, args.plan)
    facts, store = plan["plan"], Store(args.folder)
    model, profile = load_model(facts["models"][0]), Profile(**facts["profile"])
    made = {
        (p.place["targets"][0], p.place["entrant"]): Patch.load(store.patch(p.place["key"]))
        for p in placed
        if p.place["kind"] == "erase" and p.place["seed"] == facts["seeds"][0] and p.place["entrant"] in args.methods
    }
    targets = [group[0] for group in facts["targets"]]
    PROFILES[profile.name] = profile
    cells: dict[str, dict[str, list[Pair]]] = {}
    written: dict[str, list[dict[str, Any]]] = {}
    for target in targets:
        variants = {}
        for method in args.methods:
            whole = variants[method] = made[target, method]
            for tolerance in TOLERANCES:
                name = f"{method}, {tolerance:g}"
                variants[name], file = truncated(model, whole, target, tolerance, name)
                written.setdefault(name, []).append(file)
        with tempfile.TemporaryDirectory() as folder:
            (_, head), *others = variants.items()
            verbs.evaluate(model, head, out=folder, profile=profile.name, others=others, trivial=False)
            rows = read_rows(Path(folder))
        base = {r.case_id: r for r in rows if r.entrant == "none"}
        for row in rows:
            if row.entrant != "none":
                cells.setdefault(row.entrant, {}).setdefault(f"{target}|0", []).append((row, base[row.case_id]))
    result = {
        "targets": targets,
        "profile": profile.name,
        "rows": {
            name: {
                "rank": [f["rank"] for f in written[name]],
                "bytes": [f["bytes"] for f in written[name]],
                "erased": rate(cells[name], TARGET_AXES),
                "kept": rate(cells[name], KEPT_AXES),
                "less_erased": difference(cells[name], cells[name.partition(",")[0]], TARGET_AXES),
                "less_kept": difference(cells[name], cells[name.partition(",")[0]], KEPT_AXES),
            }
            for name in written
        },
    }
    if args.docs:
        into_page(args.docs, "export", markdown(result, args.docs), sheets(result))
    print(json.dumps(result) if args.json else markdown(result))


def truncated(model: Any, whole: Patch, target: str, tolerance: float, name: str) -> tuple[Patch, dict[str, Any]]:
    """The patch as it comes back from a file, and what is in the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        facts = export(whole, model, path, "diffusers", tolerance=tolerance, half=True)
        again = verbs.import_patch(model, path, targets=[target], name=name)
    return again, facts


def markdown(result: dict[str, Any], page: Path | None = None) -> str:
    """The small table; ``page``: where it is put, which then links the CSV file of :func:`sheets`."""
    lines = [
        f"The targets are {', '.join(result['targets'])}, with one training seed and profile `{result['profile']}`. Every "
        "LoRA is "
        "written in half precision, read again and evaluated on the cases of its patch.",
        "",
        "This table shows how large the file is at each tolerance and how its rates differ from those of the patch itself, in "
        "percentage points with the resampled 95 % interval in braces. Erased pools direct, synonym and implicit; kept "
        "pools near "
        "and trap.",
        "",
        *sources(page, "export", {"": "rates and differences"}),
    ]
    header = ["method", "tolerance", "rank", "MB", "erased, minus the patch", "kept, minus the patch"]
    body = []
    for name, row in result["rows"].items():
        method, _, tolerance = name.partition(", ")
        body.append(
            [
                f"`{method}`",
                tolerance,
                span(row),
                f"{megabytes(row):.2f}",
                points(row["less_erased"]),
                points(row["less_kept"]),
            ]
        )
    return "\n".join([*lines, *lines_of(header, body)]) + "\n"


def span(row: dict[str, Any]) -> str:
    """The ranks of the files, least to most."""
    ranks = sorted(row["rank"])
    return str(ranks[0]) if ranks[0] == ranks[-1] else f"{ranks[0]} to {ranks[-1]}"


def megabytes(row: dict[str, Any]) -> float:
    return sum(row["bytes"]) / len(row["bytes"]) / 1e6


def sheets(result: dict[str, Any]) -> dict[str, str]:
    """The CSV file behind the table: one row per method, tolerance and rate."""
    body = [
        [*name.partition(", ")[::2], span(row), f"{megabytes(row):.2f}", what, *rate_fields(row[what]), *point_fields(row[less])]
        for name, row in result["rows"].items()
        for what, less in (("erased", "less_erased"), ("kept", "less_kept"))
    ]
    head = ["method", "tolerance", "rank", "mb", "rate", *RATE_FIELDS, *(f"minus_patch_{f}" for f in POINT_FIELDS)]
    return {"": sheet(head, body)}


if __name__ == "__main__":
    main()
