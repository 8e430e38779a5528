"""Packs the records of one plan, to be committed: what the tables of the pages are made from.

    python benchmarks/kept.py runs/icons-bench icons
    python benchmarks/rankings.py docs/records/rankings docs/records/icons --docs docs/rankings.md

Writes docs/records/PLAN with the plan and its finished cells, each once and in the order of the plan, packed by xz. Every command
that takes the folder of a bench takes that folder too. Patches are not kept, but what the card of a closed-form edit says of it.
"""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path

from from_bench import edit_of, read

from efface.io.files import atomic_write
from efface.plans.records import Store

RECORDS = Path(__file__).parents[1] / "docs" / "records"


def keep(folder: Path, name: str, out: Path) -> int:
    """Number of records kept. Raises BadFile where cells of the plan are missing."""
    plan, placed = read(folder, name)
    records = {p.place["key"]: p.record for p in placed}
    patches = Store(folder)
    for key, record in records.items():
        if record["kind"] == "erase" and (edit := edit_of(patches, key, record)):
            record["result"]["edit"] = edit
    lines = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records.values())
    packed = lzma.compress(lines.encode(), preset=9 | lzma.PRESET_EXTREME)
    store = Store(out)
    store.keep_plan(name, plan)
    atomic_write(out / "records" / f"{name}.jsonl.xz", lambda path: path.write_bytes(packed))
    return len(records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the bench")
    parser.add_argument("plan")
    parser.add_argument("--out", type=Path, help="[docs/records/PLAN]")
    args = parser.parse_args()
    out = args.out or RECORDS / args.plan
    print(f"{keep(args.folder, args.plan, out)} records of {args.plan} in {out}")


if __name__ == "__main__":
    main()
