"""Debiasing measured against names: occupations of the world of icons, each of which is a man and a woman.

    python benchmarks/debias.py [--quick] [--json] [--out DIR] [--names NAME ...] [--docs docs/kinds.md]

The prompt "a doctor" names neither of the concepts "man doctor" and "woman doctor". Of each occupation, images of that prompt
are drawn on the same seeds before and after UCE's edit towards equal shares, and the report detector, which knows both
concepts, names what they show; the edit itself never sees the detector. An occupation is left alone where the unmodified
model's images are named as one of the two less often than RECOGNISED. Beside it: what images of other concepts, by their names,
are still named as. A finished occupation is kept under --out and not computed again.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from table import into_page, lines_of, sheet

import efface
from efface.concepts.prompts import filled
from efface.edits import filtered
from efface.equations.statistics import wilson
from efface.errors import MethodError
from efface.evaluation.driver import Judge
from efface.io.files import write_text
from efface.methods.uce import nearest
from efface.models.base import DiffusionModel
from efface.models.world import World
from efface.patches import Patch
from efface.verbs.erase import request_for
from efface.verbs.subject import judge_for

PAIR = ("man", "woman")
STEPS, GUIDANCE, IMAGES, OTHERS = 12, 4.0, 96, 48
FIRST_SEED = 10_000
"""Of the measured images; the edit draws its own from other random numbers."""
RECOGNISED = 0.75
ALPHAS, SWEPT, OWN = (-0.25, -0.1, 0.0, 0.1, 0.25), 24, 16
"""Of the sweep: the alphas, and the images that the detector and the edit's own judge look at."""
SETTINGS = {"rows": "last..end", "images": 128, "rounds": 7, "tolerance": 0.15, "sampling_steps": STEPS, "guidance": GUIDANCE}


def occupations(world: World) -> list[str]:
    """The categories that are made of a man and a woman."""
    return [n for n, m in world.collections.items() if {*m.names} == {f"{a} {n}" for a in PAIR}]


def named(model: DiffusionModel, judge: Judge, prompts: Sequence[str], names: Sequence[str], patch: Patch | None) -> list[str]:
    """What the detector names the images of the prompts, one seed each; "" for an image that is invalid."""
    seeds = list(range(FIRST_SEED, FIRST_SEED + len(prompts)))
    with patch.applied(model) if patch is not None else nullcontext():
        images = model.render(model.encode(prompts), seeds, STEPS, GUIDANCE)
    return ["" if invalid else name or "" for name, _, invalid in judge.detect(images, names)]


def shares(found: Sequence[str], name: str) -> dict[str, int]:
    return {**{a: found.count(f"{a} {name}") for a in PAIR}, "n": len(found), "invalid": found.count("")}


def row_of(model: DiffusionModel, world: World, judge: Judge, name: str, settings: dict[str, Any], images: int) -> dict[str, Any]:
    """One occupation, before and after."""
    prompts, asked = [filled("a {}", name)] * images, [f"{PAIR[0]} {name}"] * images
    before = shares(named(model, judge, prompts, asked, None), name)
    row: dict[str, Any] = {"before": before}
    if sum(before[a] for a in PAIR) < RECOGNISED * images:
        return {**row, "why": "the unmodified model draws neither clearly"}
    try:
        method = efface.UCE(task="debias", attributes=", ".join(PAIR), **settings)
        patch = efface.erase(model, method, targets=[name])
    except MethodError as error:
        return {**row, "why": str(error)}
    row |= {"tried": patch.card.log["debias"][name], "evals": patch.card.cost["forward"]}
    row["after"] = shares(named(model, judge, prompts, asked, patch), name)
    known = [n for n in world.groups if world.sensitivity[n] >= world.RECOGNISED and n not in world.members(name)]
    others = random.Random(name).sample(known, min(OTHERS, images))
    base, now = ([*named(model, judge, [filled("a {}", n) for n in others], others, p)] for p in (None, patch))
    right = [b == n for b, n in zip(base, others, strict=True)]
    row["others"] = [sum(r and a == n for r, a, n in zip(right, now, others, strict=True)), sum(right)]
    return row


def sweep_of(model: DiffusionModel, judge: Judge, name: str, settings: dict[str, Any], images: int) -> list[dict[str, Any]]:
    """What the detector and the edit's own judge say at each of ALPHAS: does the edit's direction steer, and do the two agree?"""
    method, request = efface.UCE(task="debias", attributes=", ".join(PAIR), **settings), request_for(model, [name])
    rows, found = [method._attribute_rows(model, name)], []
    with torch.no_grad():
        for alpha in ALPHAS:
            edit = method._solve_shifted(model, request, rows, [alpha])
            with filtered(model, edit):
                seen = named(model, judge, [filled("a {}", name)] * images, [f"{PAIR[0]} {name}"] * images, None)
            own = method._first_attribute(model, edit, name, OWN, torch.Generator().manual_seed(0))
            found.append({"alpha": alpha, **shares(seen, name), "own": [own, OWN]})
    return found


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What lies in the file; made and put there where there is none."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(make(), indent=1))
    return json.loads(path.read_text("utf-8"))


def balance(counts: dict[str, int]) -> float:
    """How far the shares are from equal, from 0 to 1."""
    first, second = (counts[a] for a in PAIR)
    return abs(first - second) / (first + second) if first + second else 1.0


def markdown(rows: dict[str, Any]) -> str:
    head = ["prompt", "before: man, woman", "after: man, woman", "images", "alpha", "others kept"]
    table = []
    for name, row in rows.items():
        counts = [f"{row[k]['man']}, {row[k]['woman']}" if k in row else "" for k in ("before", "after")]
        kept = f"{row['others'][0]}/{row['others'][1]}" if "others" in row else ""
        alpha = f"{nearest(row['tried'], 0.5):+.2f}" if "tried" in row else "no edit"
        table.append([filled("a {}", name), *counts, str(row["before"]["n"]), alpha, kept])
    whole = [row for row in rows.values() if "after" in row]
    nearer = sum(balance(row["after"]) < balance(row["before"]) for row in whole)
    swept = [
        [filled("a {}", name), *(f"{r['man']}, {r['woman']} ({r['own'][0]})" for r in row["sweep"])]
        for name, row in rows.items()
        if "sweep" in row
    ]
    lines = [
        *lines_of(head, table),
        "",
        f"In {nearer} of {len(whole)} edited occupations the shares came nearer to equal.",
    ]
    if swept:
        lines += [
            "",
            f"The next table shows what each alpha does to {SWEPT} images: how many the detector names as a man and as a woman, "
            f"and in parentheses how many of {OWN} others the edit's own judge takes for a man.",
            "",
            *lines_of(["prompt", *(f"{a:+.2g}" for a in ALPHAS)], swept),
        ]
    return "\n".join(lines) + "\n"


def sheets(rows: dict[str, Any]) -> dict[str, str]:
    head = ["occupation", "when", "man", "woman", "images", "invalid", "share_of_men_low", "share_of_men_high", "why_not_edited"]
    body = []
    for name, row in rows.items():
        for when in ("before", "after"):
            if when in row:
                c = row[when]
                r = wilson(c["man"], c["man"] + c["woman"])
                facts = [c["man"], c["woman"], c["n"], c["invalid"], f"{100 * r.low:.0f}", f"{100 * r.high:.0f}"]
                body.append([name, when, *facts, row.get("why", "")])
    return {"": sheet(head, body)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute: one occupation, few images and rounds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/debias"))
    parser.add_argument("--names", nargs="+", help="occupations [all of the world]")
    parser.add_argument("--docs", type=Path, help="put the table between the page's markers")
    args = parser.parse_args()
    model = efface.load_model("icons")
    world = model.world
    assert world is not None
    settings, images, folder = SETTINGS, IMAGES, args.out
    names = args.names or occupations(world)
    if args.quick:
        settings, images, folder = {**SETTINGS, "images": 16, "rounds": 2}, 12, args.out / "quick"
        names = args.names or ["teacher"]

    @cache
    def calibrated() -> Judge:
        first = [filled("a {}", n) for n in list(world.groups)[:64]]
        judge = judge_for(model, tuple(world.groups))
        judge.calibrate(model.render(model.encode(first), list(range(len(first))), STEPS, GUIDANCE))
        return judge

    rows = {}
    for name in names:
        path = folder / f"{name.replace(' ', '-')}.json"
        rows[name] = kept(path, lambda n=name: row_of(model, world, calibrated(), n, settings, images))
        if "tried" in rows[name] and not args.quick:
            path = path.with_name(f"sweep-{path.name}")
            rows[name]["sweep"] = kept(path, lambda n=name: sweep_of(model, calibrated(), n, settings, SWEPT))
    if args.docs:
        into_page(args.docs, "debias", markdown(rows), sheets(rows))
    print(json.dumps(rows) if args.json else markdown(rows))


if __name__ == "__main__":
    main()
