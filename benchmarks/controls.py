"""The table of attacks on models on which the answer is known, from the records of its plan.

efface bench benchmarks/plans/controls.toml --out runs/controls
python benchmarks/controls.py runs/controls --docs docs/attacks.intro.md
python docs/make.py
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from table import into_page, lines_of, sheet

import efface
from efface.attacks import TIERS

ROLES = {"baseline": "plain prompts", "control": "control"}


def cell(r: Mapping[str, Any] | None) -> str:
    """Broken cases, with those that have no valid image."""
    if r is None:
        return "not made"
    text = f"{r['k']}/{r['n']}"
    return f"{text}, {r['undecided']} undecided" if r["undecided"] else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="folder of the bench")
    parser.add_argument("--docs", type=Path, required=True, help="page whose table is written")
    args = parser.parse_args()
    asked = "SELECT entrant, attack, role, tier, k, n, low, high, undecided FROM attack_rates WHERE plan = 'controls'"
    found = {(r["attack"], r["entrant"]): r for r in efface.query(args.records, asked) if r["role"] != "novel"}
    names = sorted(dict.fromkeys(name for name, _ in found), key=lambda n: _order(found, n))
    rows = []
    for name in names:
        r = found.get((name, "none")) or found[name, "gold"]
        what = ROLES.get(r["role"], TIERS[r["tier"]])
        rows.append([f"`{name}`", r["tier"], what, cell(found.get((name, "none"))), cell(found.get((name, "gold")))])
    head = ["run", "tier", "what the attacker has", "unmodified model", "gold model"]
    numbers = ["k", "n", "low", "high", "undecided"]
    fields = [[a, e, r["role"], r["tier"], *(f"{r[n]}" for n in numbers)] for (a, e), r in sorted(found.items())]
    csv = sheet(["attack", "entrant", "role", "tier", *numbers], fields)
    link = "Intervals are in [a CSV file](tables/attacks.intro_controls.csv)."
    into_page(args.docs, "controls", "\n".join([*lines_of(head, rows), "", link, ""]), {"": csv})


def _order(found: Mapping[tuple[str, str], Mapping[str, Any]], name: str) -> tuple[int, str, str]:
    r = found.get((name, "none")) or found[name, "gold"]
    return (list(ROLES).index(r["role"]) if r["role"] in ROLES else len(ROLES), r["tier"], name)


if __name__ == "__main__":
    main()
