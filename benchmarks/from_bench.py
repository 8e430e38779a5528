"""The tables of docs/results.md, docs/robust.md, docs/rap.md and docs/rankings.md from the records of ``efface bench`` on a plan
of benchmarks/plans.

    python benchmarks/from_bench.py TABLE DIR [--json] [--docs FILE]

The words and the arithmetic are in methods_table.py and robust_table.py, and for ``attacks`` in the leaderboard; the cells come
from records. Milliseconds per image are a measurement of speed, which records do not hold: defences.py adds that column to
``robust``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import methods_table
import robust_table
from methods_table import Table
from robust_table import Found
from table import Pair, file_name, into_page, lines_of, sheet

from efface.errors import BadFile
from efface.evaluation.records import Row
from efface.io.files import write_text
from efface.patches import Patch
from efface.plans.plan import BASE
from efface.plans.records import Store
from efface.plans.tables import Bench, Placed
from efface.reporting.standings import Standing, tables

METHODS = {
    "methods": Table("methods", "ap"),
    "methods-robust": Table("robust", "rap"),
    "methods-options": Table("options", margin=0.10),
    "icons-search": Table("search", "gumbel, 48"),
}
"""Plan -> its table; the name is the page's marker."""
DEFENCES = ("robust", "rap")
"""Plans of attacked defences."""
TABLES = (*METHODS, *DEFENCES, "attacks")


def read(folder: Path, name: str) -> tuple[dict[str, Any], list[Placed]]:
    """The plan and its finished cells. Raises BadFile where cells are missing: a table of a part would look like the whole."""
    bench = Bench.read(Store(folder))
    if name not in bench.plans:
        raise BadFile(f"{folder} holds no plan {name!r}, but {', '.join(bench.plans)}.")
    mine = [p for p in bench.placed if p.plan == name]
    missing = [p for p in mine if not p.finished]
    if missing:
        raise BadFile(f"{len(missing)} cells of {name} are not finished; run efface bench again.")
    return bench.plans[name], mine


def edit_of(store: Store, key: str, record: dict[str, Any]) -> dict[str, Any] | None:
    """What a closed-form edit, or a refinement in its place, says of itself: in a record of docs/records, else on the card of its
    patch. None for a patch that is no such edit, and where neither is there."""
    if "edit" in record["result"] or not store.patch(key).is_file():
        return record["result"].get("edit")
    log = Patch.load(store.patch(key)).card.log
    return log.get("edit") or log.get("refinement")


def cell_name(p: Placed) -> str:
    return f"{p.place['targets'][0]}|{p.place['seed']}"


def pairs_of(placed: list[Placed]) -> dict[float, dict[str, dict[str, list[Pair]]]]:
    """Strength -> entrant -> "target|seed" -> (row, the unmodified model's row)."""
    whole = [p for p in placed if p.place["kind"] == "evaluate"]
    base = {
        p.place["targets"][0]: {r["case_id"]: Row(entrant=BASE, **r) for r in p.result["rows"]}
        for p in whole
        if p.place["entrant"] == BASE
    }
    found: dict[float, dict[str, dict[str, list[Pair]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for p in whole:
        label, known = p.place["entrant"], base[p.place["targets"][0]]
        cell = found[p.place["strength"]][label][cell_name(p)]
        cell += [(Row(entrant=label, **r), known[r["case_id"]]) for r in p.result["rows"]]
    return found


def spent(placed: list[Placed]) -> dict[str, list[tuple[int, float]]]:
    """Entrant -> (UNet evaluations, seconds) of each of its erasures."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for p in placed:
        if p.place["kind"] == "erase" and p.record is not None:
            found[p.place["entrant"]].append((p.result["cost"].get("forward", 0), p.record["run"]["seconds"]))
    return found


def methods_result(plan: dict[str, Any], placed: list[Placed], table: Table) -> dict[str, Any]:
    """Every figure of one of the tables of docs/results.md."""
    cost = {
        m: {"evals": sum(e for e, _ in v) / len(v), "seconds": sum(s for _, s in v) / len(v)} for m, v in spent(placed).items()
    }
    return methods_table.result_of(table, plan["plan"], pairs_of(placed), cost)


def defences_found(plan: dict[str, Any], placed: list[Placed]) -> dict[str, Found]:
    """Every entrant that was attacked."""
    facts, pairs, costs = plan["plan"], pairs_of(placed)[1.0], spent(placed)
    won: dict[str, dict[str, dict[str, dict[str, bool]]]] = defaultdict(lambda: defaultdict(dict))
    asked: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for p in placed:
        if p.place["kind"] == "attack":
            won[p.place["entrant"]][cell_name(p)][p.place["attack"]] = p.broken
            if p.place["role"] == "baseline":
                asked[p.place["entrant"]][cell_name(p)] = [r["case_id"] for r in p.result["attempts"] if r["base_hit"]]
    labels = [e["label"] for e in facts["entrants"] if e["label"] in won]
    return {n: Found(dict(pairs[n]), dict(won[n]), asked[n], costs[n]) for n in labels}


def robust_result(plan: dict[str, Any], found: dict[str, Found], reference: str) -> dict[str, Any]:
    """Every figure of the tables of attacked defences."""
    facts = plan["plan"]
    shown = {
        "targets": [group[0] for group in facts["targets"]],
        "seeds": facts["seeds"],
        "profile": facts["profile"]["name"],
        "budget": facts["attacks"][0]["budget"],
        "cases": facts["attacks"][0]["cases"],
    }
    tried = tuple(a["label"] for a in facts["attacks"])
    return {**shown, **robust_table.result_of(found, tried, reference)}


def attacked(folder: Path, name: str) -> list[Standing]:
    """Every entrant of the plan that was attacked."""
    return [s for t in tables(Bench.read(Store(folder))) if t.plan["name"] == name for s in t.standings if s.attacks]


ABREAST = 5
"""Defences side by side in one table: more would make it wider than a page."""


def attacks_table(found: list[Standing]) -> str:
    """Broken cases of each attack, one line per attack: with many attacks and few defences it is the narrower form."""
    labels = sorted({(a["tier"], a["role"] == "control", n) for s in found for n, a in s.attacks.items()})
    tables = []
    for first in range(0, len(found), ABREAST):
        some = found[first : first + ABREAST]
        rows = [
            [f"`{label}`" + (" (control)" if control else ""), tier, *(broken(s.attacks.get(label)) for s in some)]
            for tier, control, label in labels
        ]
        tables.append("\n".join(lines_of(["attack", "tier", *(f"`{s.entrant}`" for s in some)], rows)))
    return "\n\n".join(tables)


def broken(attack: dict[str, Any] | None) -> str:
    """Broken of counted cases, and by how many points the share exceeds that of all controls together."""
    if attack is None:
        return "not made"
    excess = "" if attack["excess"] is None else f", {100 * attack['excess']:+.0f}"
    return f"{attack['rate']['k']}/{attack['rate']['n']}{excess}"


def attacks_sheet(found: list[Standing]) -> str:
    head = ["defence", "attack", "tier", "role", "k", "n", "low", "high", "excess_over_controls"]
    rows = [
        [s.entrant, n, a["tier"], a["role"], *(f"{a['rate'][x]}" for x in ("k", "n", "low", "high")), f"{a['excess']}"]
        for s in found
        for n, a in s.attacks.items()
    ]
    return sheet(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plan", help="name of the plan [that of the table]")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--reference", default="rap", help="row of attacked defences that the others are compared with [rap]")
    parser.add_argument("--milliseconds", type=Path, help="what defences.py measured, for one more column")
    parser.add_argument("--records", type=Path, help="where to put what the tables of defences are made from, case by case")
    parser.add_argument("--docs", type=Path, help="put the tables between the page's markers")
    args = parser.parse_args()
    plan, placed = read(args.folder, args.plan or args.table)
    if args.table == "attacks":
        standings = attacked(args.folder, args.plan or args.table)
        if args.docs:
            link = f"Intervals are in [a CSV file](tables/{file_name(args.docs, 'attacks')})."
            into_page(args.docs, "attacks", f"{attacks_table(standings)}\n\n{link}\n", {"": attacks_sheet(standings)})
        print(json.dumps({s.entrant: s.attacks for s in standings}) if args.json else attacks_table(standings))
        return
    if args.table in METHODS:
        marker, page = METHODS[args.table].name, methods_table
        result = methods_result(plan, placed, METHODS[args.table])
    else:
        marker, page = "robust", robust_table
        found = defences_found(plan, placed)
        result = robust_result(plan, found, args.reference)
        result["milliseconds"] = json.loads(args.milliseconds.read_text("utf-8")) if args.milliseconds else None
        if args.records:
            cases = {n: robust_table.records_of(f) for n, f in found.items()}
            write_text(args.records, json.dumps(cases, separators=(",", ":")) + "\n")
    if args.docs:
        into_page(args.docs, marker, page.markdown(result, args.docs), page.sheets(result))
    print(json.dumps(result) if args.json else page.markdown(result))


if __name__ == "__main__":
    main()
