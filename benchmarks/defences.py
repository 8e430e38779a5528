"""What a defence costs where images are drawn, and what they look like: the defences of the plan robust, from its bench.

    python benchmarks/defences.py DIR [--plan robust] [--json] [--out FILE] [--picture FILE]

``extra``: processor time of one image on one thread with the defence, less without it, drawn by turns so that both see the same
machine. The erasures are those of the first target and training seed that a defence was made for. ``--picture``: the same cases
of the last target drawn by the unmodified model and by every defence, one row each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from from_bench import read
from PIL import Image, ImageDraw

from efface.evaluation.driver import System
from efface.evaluation.profiles import Profile
from efface.evaluation.records import Entrant
from efface.io.files import atomic_write, write_text
from efface.io.images import to_pixels
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.patches import Patch
from efface.plans.records import Store
from efface.plans.tables import Placed
from efface.registry import build_guard
from efface.verbs.subject import gold_for, suite_for

IMAGES, REPEATS = 8, 5
"""Images of a timed batch, and how often it is drawn by turns with and without the defence."""
SIDE, LABEL = 56, 130
SHOWN = {"direct": 6, "synonym": 2, "implicit": 2, "near": 8, "far": 4}


def defence_of(model: DiffusionModel, entrant: dict[str, Any], target: str, placed: list[Placed], store: Store) -> System | None:
    """The entrant as it was made for a target with the first training seed, or None where the plan has left that out."""
    mine = [p for p in placed if p.place["entrant"] == entrant["label"] and p.place["targets"] == [target]]
    made = [p.place["key"] for p in mine if p.place["kind"] == "erase"]
    if not mine or entrant["trivial"] in ("noise", "blocklist"):
        return None
    patch = Patch.load(store.patch(made[0])) if made else None
    guard = build_guard(entrant["guard"]) if entrant["guard"] else None
    gold = gold_for(model) if entrant["gold"] else None
    return System(Entrant(entrant["label"], entrant["label"], "bench"), patch, model=gold, guard=guard, targets=(target,))


def milliseconds(model: DiffusionModel, system: System, target: str, steps: int, guidance: float) -> dict[str, float]:
    """``extra`` and ``plain`` per image, the medians over the turns."""

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


def picture(model: DiffusionModel, systems: list[System], target: str, profile: dict[str, Any], path: Path) -> None:
    """The same cases drawn by every system."""
    cases = suite_for(model, [target]).cases(Profile("shown", profile["steps"], profile["guidance"], SHOWN))
    sheet = Image.new("RGB", (LABEL + SIDE * len(cases), 16 + SIDE * len(systems)), "white")
    draw = ImageDraw.Draw(sheet)
    for j, case in enumerate(cases):
        draw.text((LABEL + SIDE * j, 2), case.axis, fill="black")
    for i, system in enumerate(systems):
        draw.text((4, 16 + SIDE * i + SIDE // 3), system.entrant.label, fill="black")
        with system.active(model):
            drawn = to_pixels(system.sample(model, cases, profile["steps"]), hidden=False)
        for j, image in enumerate(drawn):
            small = Image.fromarray(image).resize((SIDE - 4, SIDE - 4), Image.Resampling.BICUBIC)
            sheet.paste(small, (LABEL + SIDE * j, 16 + SIDE * i))
    small_file = sheet.quantize(128)
    atomic_write(path, lambda p: small_file.save(p, format="PNG", optimize=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plan", default="robust", help="name of the plan [robust]")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="where to put the milliseconds")
    parser.add_argument("--picture", type=Path, help="where to put pictures of the last target")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plan, placed = read(args.folder, args.plan)
    facts, store, model = plan["plan"], Store(args.folder), load_model(plan["plan"]["models"][0])
    targets = [group[0] for group in facts["targets"]]
    extra, plain = {}, []
    for entrant in facts["entrants"]:
        found = ((t, defence_of(model, entrant, t, placed, store)) for t in targets)
        target, system = next((t, s) for t, s in found if s is not None)
        took = milliseconds(model, system, target, facts["profile"]["steps"], facts["profile"]["guidance"])
        extra[entrant["label"]] = round(took["extra"], 2)
        plain.append(took["plain"])
    result = {"images": IMAGES, "repeats": REPEATS, "plain": round(median(plain), 1), "extra": extra}
    if args.out:
        write_text(args.out, json.dumps(result, indent=1) + "\n")
    if args.picture:
        systems = [defence_of(model, e, targets[-1], placed, store) for e in facts["entrants"]]
        picture(model, [s for s in systems if s is not None], targets[-1], facts["profile"], args.picture)
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name}: {ms:+.1f} ms per image" for name, ms in extra.items()))


if __name__ == "__main__":
    main()
