"""Defences under attack on the miniature: what each erases, what it keeps, what brings the target back, and what it costs.

    python benchmarks/robust.py [--quick] [--json] [--out DIR] [--targets NAME ...] [--seeds 0 1 2] [--entrants NAME ...]
                                [--budget N] [--cases N] [--workers 2] [--docs FILE]

Every defence meets the same attacks with the same budget of UNet evaluations per case each, and the same controls. All targets
but the dog, which has a lexical trap, are concepts that the gold model never saw: what an attack brings back from it was never
erased.

A finished (target, seed, entrant) cell is not computed again; the tables are made from the cells that are there. Defences
without random numbers in their making are there for the first seed only.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from methods import Contender, cell_folder, patch_of
from PIL import Image, ImageDraw
from robust_table import Found, markdown, records_of, result_of, sheets
from table import into_page

from efface.evaluation.attack import run_attacks
from efface.evaluation.driver import System
from efface.evaluation.driver import evaluate as run_evaluation
from efface.evaluation.profiles import profile as find_profile
from efface.evaluation.records import Entrant, read_rows, read_run
from efface.io.files import atomic_write, write_text
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.mini.world import load_world
from efface.patches import Patch
from efface.registry import METHODS, build_attack, build_guard
from efface.verbs.attack import attack_units
from efface.verbs.subject import judge_for, suite_for

TARGETS = ("bomb", "helicopter", "panda", "dog")
ATTACKS = ("synonym", "group", "implicit", "unlearndiff", "concept_inversion")
IMAGES, REPEATS = 8, 5
"""Images of a timed batch, and how often it is drawn by turns with and without the defence."""


@dataclass(frozen=True)
class Defence:
    """A patch, or a guard, or the gold model, or nothing."""

    contender: Contender | None = None
    guard: str = ""
    gold: bool = False

    @property
    def random(self) -> bool:
        return (
            self.contender is not None
            and self.contender.seeds == 0
            and "seed" in METHODS.find(self.contender.method).__dataclass_fields__
        )


ONCE = 1  # the stages of their presets draw nothing: one seed tells all
DEFENCES = {
    "none": Defence(),
    "gold": Defence(gold=True),
    "negative": Defence(guard="negative"),
    "sld": Defence(guard="sld"),
    "sld, max": Defence(guard="sld:strength=max"),
    "safree": Defence(guard="safree"),
    "safree, negative": Defence(guard="safree:negative=true"),
    "uce": Defence(Contender("uce")),
    "rece": Defence(Contender("rece")),
    "realera": Defence(Contender("realera", seeds=ONCE)),
    "realera, adversarial": Defence(Contender("realera", {"mode": "adversarial"}, seeds=ONCE)),
    "trce": Defence(Contender("trce", seeds=ONCE)),
    "esd": Defence(Contender("esd")),
    "advunlearn": Defence(Contender("advunlearn")),
    "stereo": Defence(Contender("stereo")),
    # Protection only, attack only, both.
    "ap": Defence(Contender("ap")),
    "rap-attack": Defence(Contender("rap-attack")),
    "rap": Defence(Contender("rap")),
}
QUICK = ("negative", "uce")


@dataclass(frozen=True)
class Work:
    """What is the same for all cells."""

    out: Path
    profile: str
    budget: int
    cases: int
    attacks: tuple[str, ...] = ATTACKS


def cell_of(work: Work, target: str, seed: int, name: str) -> Path:
    return cell_folder(work.out, target, seed) / name.replace(", ", "-")


def run_cell(work: Work, target: str, seed: int, name: str, first: bool) -> None:
    """Patch, evaluation, attacks and milliseconds of one defence; what is on disk is kept."""
    torch.set_num_threads(1)
    defence, model = DEFENCES[name], load_model("mini")
    folder = cell_of(work, target, seed, name)
    folder.mkdir(parents=True, exist_ok=True)
    patch = (
        patch_of(model, defence.contender, target, seed, None, folder / f"{folder.name}.safetensors")
        if defence.contender
        else None
    )
    guard = build_guard(defence.guard) if defence.guard else None
    gold = load_model("mini-gold") if defence.gold else None
    kind = "gold" if gold else "patch" if patch else "guard"
    system = System(Entrant(name, name, kind, None), patch, model=gold, guard=guard, targets=(target,))
    profile, suite = find_profile(work.profile), suite_for(model, [target])
    judge = judge_for(model, suite.names)
    run_evaluation(model, [system], suite, profile, judge, folder / "evaluation")
    attacks = [build_attack(a, preset="mini", settings={"seed": seed}) for a in work.attacks]
    units = attack_units(model, attacks, target, (target,), patch, guard, work.cases, work.profile, deployed=gold)
    # The attack on what was never learned does not depend on the defence: once per target and seed.
    runs = [u for u in units if u.role != "novel" or name == "none"]
    run_attacks(runs, profile, judge, folder / "attacks", work.budget, calibration=suite.cases(profile))
    if first and not (folder / "milliseconds.json").is_file():
        write_text(
            folder / "milliseconds.json", json.dumps(extra_milliseconds(model, system, target, profile.steps, profile.guidance))
        )


def extra_milliseconds(model: DiffusionModel, system: System, target: str, steps: int, guidance: float) -> dict[str, float]:
    """Processor time per image on one thread with the defence less without, drawn by turns so that both see the same machine."""

    def timed(network: DiffusionModel) -> float:
        start = time.process_time()
        network.render(network.encode([f"a {target}"] * IMAGES), list(range(IMAGES)), steps, guidance)
        return 1000 * (time.process_time() - start) / IMAGES

    pairs = []
    for _ in range(REPEATS):
        plain = timed(model)
        with system.active(model):
            pairs.append((timed(system.model or model), plain))
    return {"extra": median(a - b for a, b in pairs), "plain": median(b for _, b in pairs)}


def collect(work: Work, targets: Sequence[str], seeds: Sequence[int], names: Sequence[str]) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for name in names:
        mine = Found({}, {}, [], [])
        for target in targets:
            for seed in seeds:
                folder = cell_of(work, target, seed, name)
                if not (folder / "attacks" / "summary.json").is_file():
                    continue
                cell, rows = f"{target}|{seed}", read_rows(folder / "evaluation")
                base = {r.case_id: r for r in rows if r.entrant == "none"}
                mine.pairs[cell] = [(r, base[r.case_id]) for r in rows if r.entrant == name]
                summary = json.loads((folder / "attacks" / "summary.json").read_text("utf-8"))
                mine.attacks[cell] = {label: entry["cases"] for label, entry in summary["attacks"].items()}
                for path in folder.glob("*.seconds"):
                    spent = Patch.load(path.with_suffix(".safetensors")).card.cost
                    mine.cost.append((spent.get("forward", 0), float(path.read_text())))
                if (folder / "milliseconds.json").is_file():
                    mine.milliseconds.append(json.loads((folder / "milliseconds.json").read_text("utf-8")))
        if mine.pairs:
            found[name] = mine
    return found


SIDE, LABEL = 56, 130
SHOWN = {"direct": 6, "synonym": 2, "implicit": 2, "near": 8, "far": 4}


def picture(work: Work, target: str, seed: int, path: Path) -> None:
    """The same cases drawn by the model and by every defence that is on disk, one row each."""
    rows: list[tuple[str, Path]] = []
    for name in DEFENCES:
        folder = cell_of(work, target, seed, name) / "evaluation"
        if (folder / "run.json").is_file():
            rows.append((name, folder))
    grid = read_run(rows[0][1]).grid
    cases = [c for axis, n in SHOWN.items() for c in [c for c in grid if c["axis"] == axis][:n]]
    sheet = Image.new("RGB", (LABEL + SIDE * len(cases), 16 + SIDE * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for j, case in enumerate(cases):
        draw.text((LABEL + SIDE * j, 2), case["axis"], fill="black")
    for i, (name, folder) in enumerate(rows):
        draw.text((4, 16 + SIDE * i + SIDE // 3), name, fill="black")
        for j, case in enumerate(cases):
            image = folder / "images" / name / f"{case['case_id']}.png"
            if image.is_file():
                small = Image.open(image).convert("RGB").resize((SIDE - 4, SIDE - 4), Image.Resampling.BICUBIC)
                sheet.paste(small, (LABEL + SIDE * j, 16 + SIDE * i))
    small_file = sheet.quantize(128)
    atomic_write(path, lambda p: small_file.save(p, format="PNG", optimize=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute: two defences, one target and seed, two attacks")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/robust"))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--entrants", nargs="+", help="defences to run [all]; the tables show all that are on disk")
    parser.add_argument("--budget", type=int, default=300, help="UNet evaluations per case, attack and control")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--reference", default="rap", help="row that the others are compared with")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--docs", type=Path, help="put the tables between the page's markers")
    parser.add_argument("--records", type=Path, help="where to put what the tables are made from, case by case")
    parser.add_argument("--picture", type=Path, help="where to put pictures of the last target, first seed")
    args = parser.parse_args()
    unknown = [n for n in (*(args.entrants or ()), args.reference) if n not in DEFENCES]
    if unknown:
        parser.error(f"unknown defence {unknown[0]!r}; there are {', '.join(DEFENCES)}.")
    reference = args.reference if not args.quick else QUICK[0]
    names, targets, seeds = args.entrants or list(DEFENCES), args.targets, args.seeds
    work = Work(args.out, "table", args.budget, args.cases)
    if args.quick:
        names, targets, seeds = args.entrants or list(QUICK), targets[:1], seeds[:1]
        work = Work(args.out / "quick", "smoke", 130, 2, ("synonym", "unlearndiff"))
    unseen = load_world().reserved
    jobs = [
        (work, t, s, n, (t, s) == (targets[0], seeds[0]))
        for s in seeds
        for t in targets
        for n in names
        if (s == seeds[0] or DEFENCES[n].random) and (not DEFENCES[n].gold or t in unseen)
    ]
    if args.workers == 1 or args.quick:
        for job in jobs:
            run_cell(*job)
    else:
        with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
            for future in [pool.submit(run_cell, *job) for job in jobs]:
                future.result()
    found = collect(work, targets, seeds, list(DEFENCES))
    facts = {"targets": targets, "seeds": seeds, "profile": work.profile, "budget": work.budget, "cases": work.cases}
    result = {**facts, "images": IMAGES, "repeats": REPEATS, **result_of(found, work.attacks, reference)}
    if args.docs:
        into_page(args.docs, "robust", markdown(result, args.docs), sheets(result))
    if args.records:
        write_text(args.records, json.dumps({n: records_of(f) for n, f in found.items()}, separators=(",", ":")) + "\n")
    if args.picture:
        picture(work, targets[-1], seeds[0], args.picture)
    print(json.dumps(result) if args.json else markdown(result))


if __name__ == "__main__":
    main()
