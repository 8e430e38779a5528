"""The studies behind docs/studies.md on the miniature, eight targets of eight groups, three training seeds for the headlines; and
the same in the world of icons, whose results stand in the table of claims of docs/rankings.md.

    python benchmarks/studies.py [--quick] [--json] [--store runs/studies-store] [--out runs/studies] [--docs docs/studies]
                                 [--only NAME ...]
    python benchmarks/studies.py --model icons --store runs/icons-store --out runs/icons-studies --docs docs/studies/icons

Erasures and scans are kept in --store and not made again. --docs copies every study's result and figure to where `python
docs/make.py` makes the pages from.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from efface import verbs
from efface.io.files import write_text

SIX = ("fire engine", "dog", "palm tree", "castle", "guitar", "crossed swords")
EIGHT = (*SIX, "pineapple", "police officer")
EIGHT_ICONS = tuple(tomllib.loads((Path(__file__).parent / "plans" / "icons-search.toml").read_text("utf-8"))["targets"])
# "-again": the same study on other targets or methods, apart from the first.
MINI: dict[str, dict[str, Any]] = {
    "impact": {"targets": EIGHT, "methods": ("naive", "ap"), "seeds": (0, 1, 2)},
    "spectrum": {"targets": EIGHT, "methods": ("naive",), "seeds": (0, 1)},
    "preserve": {"targets": SIX[:3], "seeds": (0,)},
    "preserve-again": {"targets": SIX[3:], "seeds": (0,)},
    "search": {"targets": SIX, "seeds": (0,)},
    "text-similarity": {"targets": EIGHT, "methods": ("naive", "esd", "ap", "age"), "seeds": (0, 1, 2)},
    "collapse": {"targets": EIGHT, "methods": ("naive", "age", "ap"), "seeds": (0, 1, 2)},
    "locality": {"targets": EIGHT, "methods": ("naive", "esd", "ap", "age"), "seeds": (0, 1, 2)},
    "locality-again": {"targets": EIGHT, "methods": ("uce",), "seeds": (0,)},  # deterministic: one seed says all
}
ICONS_SPACE = Path(__file__).parent / "plans" / "icons-space.txt"
# All 885 names would cost five million UNet evaluations, most of a day of one core: a space of 119 names, and fewer seeds,
# methods and images than on the miniature.
PRESERVED = ("ap", "naive", "neutral", "fixed-far", "fixed-related", "ap-random")
ICONS: dict[str, dict[str, Any]] = {
    "impact": {"targets": EIGHT_ICONS, "methods": ("naive", "ap"), "seeds": (0, 1), "images": 1},
    "spectrum": {"targets": EIGHT_ICONS, "methods": ("naive",), "seeds": (0,), "images": 1},
    "preserve": {"targets": EIGHT_ICONS[:3], "methods": PRESERVED, "seeds": (0,)},
    "preserve-again": {"targets": EIGHT_ICONS[3:6], "methods": PRESERVED, "seeds": (0,)},
    "search": {"targets": EIGHT_ICONS[:6], "seeds": (0,)},
    "text-similarity": {"targets": EIGHT_ICONS, "methods": ("naive",), "seeds": (0, 1), "images": 1},
    "collapse": {"targets": EIGHT_ICONS, "methods": ("naive", "age", "ap"), "seeds": (0,)},
    "locality": {"targets": EIGHT_ICONS, "methods": ("naive",), "seeds": (0, 1), "images": 1},
}
PLANS = {"mini": MINI, "icons": {name: {**wanted, "space": str(ICONS_SPACE)} for name, wanted in ICONS.items()}}
QUICK = {"targets": ("dog", "castle"), "methods": ("uce",), "images": 1, "profile": "smoke"}
QUICK_NAMES = ("dog", "cat", "tiger", "castle", "church", "guitar", "pizza", "apple")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: locality of one closed-form edit over eight names")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--store", type=Path, default=Path("runs/studies-store"))
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--docs", type=Path, default=None)
    parser.add_argument("--model", choices=list(PLANS), default="mini")
    parser.add_argument("--only", nargs="+", choices=list(MINI))
    args = parser.parse_args()
    plan = PLANS[args.model]
    results: dict[str, Any] = {}
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            names = Path(folder) / "names.txt"
            names.write_text("\n".join(QUICK_NAMES))
            results["locality"] = verbs.study("mini", "locality", out=Path(folder) / "out", space=str(names), **QUICK)
    else:
        for name in args.only or plan:
            note = (lambda text: None) if args.json else print
            study = name.removesuffix("-again")
            results[name] = verbs.study(args.model, study, out=args.out / name, store=args.store, note=note, **plan[name])
            if args.docs is not None:
                keep(args.out / name, args.docs / name)
    if args.json:
        print(json.dumps({"sentences": {name: r["sentence"] for name, r in results.items()}}))
    else:
        print("\n".join(f"{name}: {r['sentence']}" for name, r in results.items()))


def keep(folder: Path, docs: Path) -> None:
    """Result and figure; the pictures of the films are in the figure already, and a space is named by its file alone."""
    docs.mkdir(parents=True, exist_ok=True)
    result = json.loads((folder / "result.json").read_text("utf-8"))
    result.pop("films", None)
    result["space"] = Path(result["space"]).name
    write_text(docs / "result.json", json.dumps(rounded(result), indent=1) + "\n")
    shutil.copyfile(folder / "figure.svg", docs / "figure.svg")


def rounded(value: Any) -> Any:
    """Five significant digits: more is noise in a file that stays in the history."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
