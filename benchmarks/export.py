"""How small may the file be: erasures written as LoRAs of falling rank, read again and measured.

    python benchmarks/export.py [--quick] [--json] [--out DIR] [--targets NAME ...] [--methods NAME ...] [--docs FILE]

Every LoRA (diffusers' format, half precision) is written by efface export, read by efface import, and evaluated on the cases of
its patch. Patches under --out are kept; `--out runs/robust-table` uses those of `benchmarks/methods.py --table robust`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from methods import TARGETS, Contender, cell_folder, patch_of
from table import KEPT_AXES, TARGET_AXES, Pair, difference, into_page, lines_of, points, rate, rate_text

from efface import api
from efface.evaluation.records import read_rows
from efface.models.load import load_model
from efface.patches import Patch
from efface.patches.export import export

METHODS = ("esd", "ap", "rap", "realera")
TOLERANCES = (0.001, 0.1, 0.3, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: one target and method, profile smoke")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/export"))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--docs", type=Path, help="put the table between the page's markers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    targets, methods, tolerances, profile = args.targets, args.methods, TOLERANCES, "table"
    if args.quick:
        targets, methods, tolerances, profile = targets[:1], ["realera"], TOLERANCES[:2], "smoke"
    model = load_model("mini")
    cells: dict[str, dict[str, list[Pair]]] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    for target in targets:
        variants = {}
        for method in methods:
            whole = patch_of(
                model, Contender(method), target, 0, None, cell_folder(args.out, target, 0) / f"{method}.safetensors"
            )
            variants[method] = whole
            for tolerance in tolerances:
                name = f"{method}, {tolerance:g}"
                variants[name], written = truncated(model, whole, target, tolerance, name)
                facts.setdefault(name, []).append(written)
        with tempfile.TemporaryDirectory() as folder:
            (_, head), *others = variants.items()
            api.evaluate(model, head, out=folder, profile=profile, others=others, trivial=False)
            rows = read_rows(Path(folder))
        base = {r.case_id: r for r in rows if r.entrant == "none"}
        for row in rows:
            if row.entrant != "none":
                cells.setdefault(row.entrant, {}).setdefault(f"{target}|0", []).append((row, base[row.case_id]))
    result = {
        "targets": targets,
        "profile": profile,
        "rows": {
            name: {
                "rank": [f["rank"] for f in facts[name]],
                "bytes": [f["bytes"] for f in facts[name]],
                "erased": rate(cells[name], TARGET_AXES),
                "kept": rate(cells[name], KEPT_AXES),
                "less_erased": difference(cells[name], cells[name.partition(",")[0]], TARGET_AXES),
                "less_kept": difference(cells[name], cells[name.partition(",")[0]], KEPT_AXES),
            }
            for name in facts
        },
    }
    if args.docs:
        into_page(args.docs, "export", markdown(result))
    print(json.dumps(result) if args.json else markdown(result))


def truncated(model: Any, whole: Patch, target: str, tolerance: float, name: str) -> tuple[Patch, dict[str, Any]]:
    """The patch as it comes back from a file, and what is in the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        facts = export(whole, model, path, "diffusers", tolerance=tolerance, half=True)
        again = api.import_patch(model, path, targets=[target], name=name)
    return again, facts


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"Targets {', '.join(result['targets'])}; one training seed; profile `{result['profile']}`. LoRA in half precision, "
        "written and read again. Erased: direct, synonym and implicit; kept: near and trap. Differences in percentage points to "
        "the patch itself, on the same cases, {resampled by target, then case}.",
        "",
    ]
    body = []
    for name, row in result["rows"].items():
        method, _, tolerance = name.partition(", ")
        ranks, size = sorted(row["rank"]), sum(row["bytes"]) / len(row["bytes"]) / 1e6
        span = str(ranks[0]) if ranks[0] == ranks[-1] else f"{ranks[0]} to {ranks[-1]}"
        body.append(
            [
                f"`{method}`",
                tolerance,
                span,
                f"{size:.2f}",
                rate_text(row["erased"]),
                points(row["less_erased"]),
                rate_text(row["kept"]),
                points(row["less_kept"]),
            ]
        )
    header = ["method", "tolerance", "rank", "MB", "erased", "minus the patch", "kept", "minus the patch"]
    return "\n".join([*lines, *lines_of(header, body)]) + "\n"


if __name__ == "__main__":
    main()
