"""docs/performance.md from the results of one GPU run, and the table that ends the run.

    python benchmarks/gpu_page.py RESULTS...        copy them to docs/numbers/gpu.json and write docs/performance.md
    python benchmarks/gpu_page.py RESULTS --table   print the table and write nothing

Of several runs on one kind of card the last one counts; what only an earlier one measured is marked as such.

What the figures do not say by themselves, such as why a prediction failed, is written by hand in docs/numbers/gpu_notes.md and
put at the end of the page; every gap that it does not explain is listed there as open.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gpu_measure import prediction, table

DOCS = Path(__file__).parents[1] / "docs"
NUMBERS, NOTES, PAGE = DOCS / "numbers" / "gpu.json", DOCS / "numbers" / "gpu_notes.md", DOCS / "performance.md"
TOLERANCE = 0.15
"""Share by which measured memory may miss the predicted."""
COLUMNS = ("what", "run by", "dtype", "mode", "ms", "range", "peak GiB", "TFLOP/s", "predicted", "note")


def page(results: dict[str, Any], notes: str = "") -> str:
    """Raises ValueError for results that are no measurement of a GPU: a rehearsal, or nothing at all."""
    if results["smoke"] or not results["rows"] or results["card"] == "CPU":
        raise ValueError("these are no figures of a GPU: a rehearsal on the CPU, or an empty run. Nothing was written.")
    v = results["versions"]
    lines = [
        "# Performance on a GPU",
        "",
        f"{results['card']} ({results['memory_gib']:.0f} GiB), driver {results['driver']}, torch {v['torch']} with CUDA "
        f"{results['cuda']}, diffusers {v['diffusers']}, Python {v['python']}, commit {results['commit'][:12]}. Every figure is "
        "of this one kind of card. Rows marked *earlier run* were measured shortly before the others; ratios are within a run.",
        "",
        "**Random weights: speed and memory only.** The networks have their true sizes and run the same kernels as "
        "trained ones; no text was read by a large encoder for the flow models and no picture was decoded. SD 1.5 and "
        "SDXL ran through efface's adapters and methods; rows marked *network only* ran the raw network with an update of "
        "the same shape. *official schedule re-enacted* spends the forward evaluations of the official code on the same "
        "network in the same run, without its backward passes and with our sampler's savings, so the official code itself "
        "is slower. *predicted* was written down before the first run; F is half of a forward pass of two rows in the "
        "adapter.",
        "",
        "```bash",
        "OUT=runs/gpu bash benchmarks/gpu.sh",
        "```",
        "",
        "Milliseconds are medians, each call waited for; peaks are of tensors, without the CUDA context (0.6 to 1 GiB).",
        "",
        *compared(results["rows"]),
        *memory(results["rows"]),
    ]
    for model in dict.fromkeys(r["model"] for r in results["rows"]):
        lines += [f"## {model}", "", *markdown(COLUMNS, [cells(r) for r in results["rows"] if r["model"] == model]), ""]
    lines += ["## What did not run", "", *dropped(results), "", "## Predictions", "", *judged(results["rows"]), ""]
    return "\n".join([*lines, notes.strip(), ""] if notes.strip() else lines)


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The last run with the rows and failures that only earlier ones have. Raises ValueError for runs on different cards."""
    last = runs[-1]
    if len({r["card"] for r in runs}) > 1:
        raise ValueError("runs on different cards do not belong into one table.")
    key = lambda row: (row["model"], row["what"], row.get("dtype"), row.get("mode"), row.get("scope"))  # noqa: E731
    rows, sections = list(last["rows"]), dict(last["sections"])
    for run in reversed(runs[:-1]):
        known = {key(r) for r in rows}
        for row in run["rows"]:
            if key(row) not in known:
                rows.append({**row, "note": "; ".join(filter(None, [row.get("note", ""), "earlier run"]))})
        sections = {**{f"{name} (earlier run)": s for name, s in run["sections"].items()}, **sections}
    failures = [f for run in runs for f in run.get("failures", [])]
    return {**last, "rows": rows, "sections": sections, "failures": failures}


def markdown(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(r) + " |" for r in (list(head), ["---"] * len(head), *rows)]


def number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def cells(row: dict[str, Any]) -> list[str]:
    low, high = row.get("ms_range", (None, None))
    spread = "" if low is None else f"{number(low, 3)}-{number(high, 3)} ({row['repeats']})"
    return [
        row["what"],
        row.get("scope", ""),
        row.get("dtype", ""),
        row.get("mode", ""),
        number(row.get("ms")),
        spread,
        number(row.get("peak_gib"), 3),
        number(row.get("tflop_per_s"), 3),
        prediction(row),
        row.get("note", ""),
    ]


def compared(rows: list[dict[str, Any]]) -> list[str]:
    """Ours against the official schedule: both times, both counts."""
    found = []
    for row in rows:
        if row.get("times_ours") is None:
            continue
        own = next(r for r in rows if (r["model"], r["dtype"], r["what"]) == (row["model"], row["dtype"], row["ours"]))
        evals = [r["evals"]["forward"] for r in (row, own)]
        name = f"{row['method']} on {row['model']}, {row['dtype']}"
        found.append(
            [name, *map(number, (row["ms"], own["ms"], row["times_ours"])), *(number(e) for e in (*evals, evals[0] / evals[1]))]
        )
    if not found:
        return []
    head = ("", "official, ms", "ours, ms", "time ratio", "official, evaluations", "ours, evaluations", "evaluation ratio")
    return ["## Ours against the official schedule, per update", "", *markdown(head, found), ""]


def memory(rows: list[dict[str, Any]]) -> list[str]:
    found = [
        [
            f"{r['model']}, {r['what']}",
            r["dtype"],
            r["mode"],
            number(r["predicted_gib"], 3),
            number(r["peak_gib"], 3),
            f"{r['peak_gib'] / r['predicted_gib'] - 1:+.0%}",
        ]
        for r in rows
        if r.get("predicted_gib") and r.get("peak_gib")
    ]
    head = ("", "dtype", "mode", "predicted GiB", "measured GiB", "off by")
    return ["## Memory, predicted and measured", "", *markdown(head, found), ""] if found else []


def dropped(results: dict[str, Any]) -> list[str]:
    found = [
        f"- {name}: {s['state']} after {s['seconds']:.0f} s" for name, s in results["sections"].items() if s["state"] != "done"
    ]
    found += [f"- {f['what']}: {f['error']}" for f in results.get("failures", [])]
    return found or ["Everything that was planned ran."]


def judged(rows: list[dict[str, Any]]) -> list[str]:
    """Memory by a rule; times are predicted in words, so both numbers are put side by side for the reader."""
    off = [
        r
        for r in rows
        if r.get("predicted_gib") and r.get("peak_gib") and abs(r["peak_gib"] / r["predicted_gib"] - 1) > TOLERANCE
    ]
    n = sum(1 for r in rows if r.get("predicted_gib") and r.get("peak_gib"))
    lines = [f"Memory: {n - len(off)} of {n} peaks lie within {TOLERANCE:.0%} of the prediction."] if n else []
    lines += [
        f"- {r['model']}, {r['what']}, {r['mode']}: open, {r['peak_gib']:.3g} GiB against {r['predicted_gib']:.3g}." for r in off
    ]
    lines += [""] if lines else []
    lines += [
        "Each line below gives a time as it was predicted before the first run, and what was measured: the time, the same in "
        "units of F (half of a forward pass of two rows in the adapter), and the rate of arithmetic, where they are known.",
        "",
    ]
    lines += [
        f"- {r['model']}, {r['what']}, {r.get('dtype', '')} {r.get('mode', '')}: predicted {r['predicted']}, "
        f"measured {measured(r)}."
        for r in rows
        if r.get("predicted")
    ]
    return lines


def measured(row: dict[str, Any]) -> str:
    told = [f"{row['ms']:.4g} ms"] if row.get("ms") is not None else []
    told += [f"{row['forwards']:.3g} F"] if row.get("forwards") is not None else []
    told += [f"{row['tflop_per_s']:.3g} TFLOP/s"] if row.get("tflop_per_s") is not None else []
    return ", ".join([*told, *([row["note"]] if row.get("note") else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="results.json of benchmarks/gpu.py, the latest last")
    parser.add_argument("--table", action="store_true", help="print, and write nothing")
    args = parser.parse_args()
    results = merged([json.loads(path.read_text("utf-8")) for path in args.results])
    if args.table:
        print(table(results))
        return
    text = page(results, NOTES.read_text("utf-8") if NOTES.exists() else "")
    NUMBERS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
