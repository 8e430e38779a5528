"""Closed-form edits of 1, 5, 20 and 50 concepts at once on the miniature: what is erased, what is kept, what comes back.

    python benchmarks/closed_form_mini.py [--quick] [--json] [--out runs/closed-form] [--counts 1 5 20 50] [--docs FILE]

Targets are a fixed random choice from five groups (nested: the 5 contain the 1), so that four groups stay for "far". A finished
cell is not computed again: patches and rows are kept under --out and the table is made from them alone. "comes back": the
gradient-free attack c' = T^-1 c (efface.edits.BringBack) on the direct prompts; the share of images that show the target again.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from table import RATE_FIELDS, into_page, lines_of, rate_fields, sheet, short, sources

from efface import verbs
from efface.edits import BringBack
from efface.equations.statistics import wilson
from efface.evaluation.driver import System, evaluate
from efface.evaluation.judges import MiniJudge
from efface.evaluation.profiles import Profile
from efface.evaluation.records import Entrant
from efface.evaluation.suite import Suite
from efface.io.files import write_text
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.mini import card
from efface.models.mini.world import load_world
from efface.patches import Patch
from efface.registry import build_method
from efface.verbs.subject import suite_for

GROUPS = ("vehicle", "animal", "food", "nature", "person")
TUNED_ON = "dog"  # presets were chosen on this target, so it is none of ours
TABLE = Profile("closed-form", 10, 4.0, {"direct": 40, "synonym": 12, "implicit": 12, "near": 30, "trap": 15, "far": 30})
QUICK = Profile("closed-form-quick", 3, 4.0, {"direct": 4, "near": 2, "far": 2})
HELD_OUT = "prior-without-judged-names.txt"

ENTRANTS: dict[str, tuple[str, str, dict[str, Any]]] = {  # label -> method, preset, options
    "time": ("time", "mini", {}),
    "uce 2025": ("uce", "2025", {}),
    "uce": ("uce", "mini", {}),
    "uce + pin": ("uce", "mini", {"pin": True}),
    "uce + prior": ("uce", "pinned", {"pin": False}),
    "uce + both": ("uce", "pinned", {}),
    "uce + both, judged names not in the prior": ("uce", "pinned", {"prior": HELD_OUT}),
    "uce sealed, 0.3": ("uce", "sealed", {"seal": 0.3}),
    "uce sealed, 3": ("uce", "sealed", {}),
    "uce sealed, 30": ("uce", "sealed", {"seal": 30.0}),
    "rece": ("rece", "mini", {}),
    "rece + both": ("rece", "pinned", {}),
    "mace, refinement alone": ("mace", "mini", {"steps": 0}),
    "mace": ("mace", "mini", {}),
    "realera": ("realera", "mini", {}),
}
MOST = {"mace": 5, "uce sealed, 0.3": 5, "uce sealed, 30": 5}
"""Largest number of concepts an entrant is run with: mace trains every one of them, and the seals show their trade-off early."""


@dataclass(frozen=True)
class Attacked(System):
    """The patched model, with every named prompt encoded as the attacker would."""

    ridge: float = 0.0

    def active(self, model: DiffusionModel) -> AbstractContextManager[Any]:
        return self._active(model)

    @contextmanager
    def _active(self, model: DiffusionModel) -> Iterator[None]:
        assert self.patch is not None
        back = BringBack.of(model, self.patch, self.ridge)
        with self.patch.applied(model), back.against(model):
            yield


def targets(n: int) -> list[str]:
    world, known = load_world(), card()["concepts"]
    names = [c.name for c in world.concepts if c.group in GROUPS and world.kind(c.name) == "ordinary" and c.name != TUNED_ON]
    usable = [name for name in names if known[name]["sensitivity"] >= 0.8]
    return random.Random(0).sample(usable, len(usable))[:n]


def erase_all(model: DiffusionModel, n: int, labels: list[str], suite: Suite, folder: Path) -> dict[str, Patch]:
    judged = {c.name for c in (*suite.near, *suite.trap, *suite.far)}
    held_out = folder / HELD_OUT
    others = [c for c in model.concept_names if c not in judged]
    write_text(held_out, "\n".join(others) + "\n")
    patches = {}
    for label in labels:
        if n > MOST.get(label, n):
            continue
        if HELD_OUT in ENTRANTS[label][2].values() and not set(others) - set(targets(n)):
            continue  # every name of the world is a target or judged
        path = folder / f"{label.replace(' ', '-').replace(',', '')}.safetensors"
        if not path.is_file():
            method, preset, settings = ENTRANTS[label]
            chosen = {k: str(held_out) if v == HELD_OUT else v for k, v in settings.items()}
            start = time.perf_counter()
            patch = verbs.erase(model, build_method(method, preset=preset, settings=chosen), targets=targets(n))
            write_text(path.with_suffix(".seconds"), f"{time.perf_counter() - start:.3f}\n")
            patch.save(path)
        patches[label] = Patch.load(path)
    return patches


def run(out: Path, counts: list[int], labels: list[str], profile: Profile) -> dict[str, Any]:
    model, table = load_model("mini"), {}
    attack = Profile(f"{profile.name}-attack", profile.steps, profile.guidance, {"direct": profile.cases["direct"]})
    for n in counts:
        folder = out / str(n)
        suite = suite_for(model, targets(n))
        patches = erase_all(model, n, labels, suite, folder)
        systems = [System(Entrant(label, label, "patch", p.json()), p) for label, p in patches.items()]
        found = evaluate(model, systems, suite, profile, MiniJudge(), folder / "plain")
        attacked = [Attacked(Entrant(label, label, "patch"), p) for label, p in patches.items()]
        back = evaluate(model, attacked, suite, attack, MiniJudge(), folder / "attacked")
        table[n] = {}
        for label in ("none", *patches):
            axes = found["entrants"][label]["axes"]
            row = {axis: axes[axis]["erased_valid"] or axes[axis]["preserved"] for axis in axes}
            general = [row.pop(axis) for axis in ("synonym", "implicit") if axis in row]
            if general:
                row["generality"] = pooled(general)
            hits = back["entrants"][label]["axes"]["direct"]["detection"]
            row["comes back"] = None if label == "none" else hits
            if label in patches:
                log = patches[label].card.log
                row["edit"] = log.get("edit") or log.get("refinement")
                path = folder / f"{label.replace(' ', '-').replace(',', '')}.seconds"
                row["seconds"] = float(path.read_text())
            table[n][label] = row
    return {"targets": targets(max(counts)), "profile": {"steps": profile.steps, "cases": profile.cases}, "table": table}


def pooled(rates: list[dict[str, Any]]) -> dict[str, Any]:
    return wilson(*(sum(r[k] for r in rates) for k in ("k", "n", "invalid"))).json()


COLUMNS = ("direct", "generality", "near", "trap", "far", "comes back")
CASES = 6
"""The fields of a rate without its resampled interval: there is one set of targets."""


def markdown(result: dict[str, Any], page: Path | None = None) -> str:
    """One small table per number of concepts; ``page``: where they are put, which then links the CSV file of :func:`sheets`."""
    lines = [
        "Each table shows what is left after erasing that many concepts at once, in percent of the cases that the "
        "unmodified model "
        "gets right. Erased is direct, generality pools synonym and implicit, and an invalid image counts as not erased. Comes "
        "back: the share of images that show the target again after the attack `c' = T^-1 c`.",
        "",
        *sources(
            page,
            "mini",
            {"": "all rates"},
            "Intervals over cases, invalid images, the condition number of T, the length of the embedding that undoes "
            "the edit and seconds",
        ),
    ]
    for n, rows in result["table"].items():
        lines += [
            f"**{n} concept{'s' if int(n) > 1 else ''} at once**",
            "",
            *lines_of(
                ["edit", "erased", *COLUMNS[1:]], [[label, *(shown(row.get(c)) for c in COLUMNS)] for label, row in rows.items()]
            ),
            "",
        ]
    return "\n".join(lines)


def shown(r: dict[str, Any] | None) -> str:
    return short(r) if r and r["n"] else "-"


def sheets(result: dict[str, Any]) -> dict[str, str]:
    """The CSV file behind the tables: one row per number of concepts, edit and rate."""
    body = []
    for n, rows in result["table"].items():
        for label, row in rows.items():
            edit, facts = row.get("edit"), ["", "", "", ""]
            if edit:
                condition = "none" if edit["condition"] is None else f"{edit['condition']:.1e}"
                back = edit["bring_back"]
                facts = [condition, f"{back['length']:.3g}", f"{100 * back['missed']:.0f}", f"{row['seconds']:.2f}"]
            for column in COLUMNS:
                if (r := row.get(column)) and r["n"]:
                    body.append([n, label, column, *rate_fields(r)[:CASES], *facts])
    head = [
        "concepts",
        "edit",
        "rate",
        *RATE_FIELDS[:CASES],
        "condition",
        "way_back_length",
        "way_back_missed_percent",
        "seconds",
    ]
    return {"": sheet(head, body)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: one concept, three entrants, few images")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/closed-form"))
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 5, 20, 50])
    parser.add_argument("--docs", type=Path, help="put the table between the page's markers")
    args = parser.parse_args()
    if args.quick:
        result = run(args.out / "quick", [1], ["uce", "uce sealed, 3", "rece + both"], QUICK)
    else:
        result = run(args.out, args.counts, list(ENTRANTS), TABLE)
    if args.docs:
        into_page(args.docs, "mini", markdown(result, args.docs), sheets(result))
    print(json.dumps(result) if args.json else markdown(result))


if __name__ == "__main__":
    main()
