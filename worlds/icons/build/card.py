"""Stage ``card``: what the packed models can and cannot do, measured with efface's own adapter.

Writes ``card.json`` (numbers, read by the package), ``CARD.md`` (the same for people), ``similar.json`` (which concepts are
alike, measured before any erasure) and a contact sheet, all beside the weights.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from efface_icons import UNETS, load_icons

from efface.concepts.prompts import Case
from efface.detectors.clip_score import ClipScorer
from efface.detectors.mini import ARCHITECTURES, MiniDetector, validity
from efface.errors import BadFile
from efface.io.files import write_text
from efface.models.icon_world import IconWorld
from efface.models.sd import StableDiffusion
from miniature.card import (
    GUIDANCE,
    STEPS,
    Judge,
    Judged,
    Shot,
    background_rates,
    bare,
    calibration,
    contact_sheet,
    judge_with,
    kind_rates,
    on_backgrounds,
    percent,
    rate,
    style_rates,
    styled,
    wanted_concept,
)
from miniature.data import article
from miniature.suite import rankings

from . import settings
from .pack import PACKAGE
from .settings import Build

SENSITIVE = 0.8


@dataclass(frozen=True)
class InBatches:
    """A model that draws so many images at once."""

    model: StableDiffusion
    batch: int

    def sample(self, cases: Sequence[Case], steps: int) -> torch.Tensor:
        return self.model.sample(cases, steps, self.batch)


def styles_of(world: IconWorld, names: Sequence[str], held_out: bool) -> list[Shot]:
    """A prompt for every cell of these concepts that was trained, or that was held out."""
    shots = styled(names, world.styles, 1000)
    return [s for s in shots if world.has(s.concept, s.style or "") and ((s.concept, s.style) in world.held_out) == held_out]


def otherwise(world: IconWorld, names: Sequence[str]) -> dict[str, list[Shot]]:
    """Prompts that do not say the name: synonyms that captions never used, those that they used, and descriptions."""
    held = world.held_out_synonyms
    pick = {
        "held_out_synonyms": lambda n: [held[n]] if n in held else [],
        "caption_synonyms": lambda n: list(world.caption_synonyms(n)[:1]),
        "descriptions": lambda n: list(world[n].implicit[:1]),
    }
    said = {kind: [(n, text) for n in names for text in texts(n)] for kind, texts in pick.items()}
    return {
        kind: [
            Shot(text if kind == "descriptions" else article(text), n, None, None, 6000 + k) for k, (n, text) in enumerate(pairs)
        ]
        for kind, pairs in said.items()
    }


def gold_facts(world: IconWorld, folder: Path, judge: Judge, labels: Sequence[str], build: Build, device: str) -> dict[str, Any]:
    """What each gold model draws of what it never saw, and how well it draws the rest."""
    ordinary = world.names("ordinary")
    hidden = {
        "icons-gold": (world.names("reserved"), world.reserved_style),
        "icons-gold-category": ([c.name for c in world.concepts if c.group == settings.GOLD_CATEGORY], ""),
        "icons-gold-style": ([], settings.GOLD_STYLE),
    }
    out: dict[str, Any] = {}
    for model, (concepts, style) in hidden.items():
        try:
            gold = load_icons(model, device=device, folder=folder)
        except BadFile:
            continue  # not trained yet; the card says so
        facts: dict[str, Any] = {"digest": gold.digest()}
        draws = InBatches(gold, build.sampled)
        if concepts:
            unseen = judge(draws, bare(concepts, range(build.seeds)))
            facts["unseen_concepts"] = rate(wanted_concept(unseen, "report", tuple(labels)))
        rest = judge(draws, bare([n for n in ordinary[:: build.every] if n not in concepts], [0]))
        facts["ordinary"] = rate(wanted_concept(rest, "report", tuple(labels)))
        if style:
            asked = judge(draws, styled(ordinary[:: max(1, len(ordinary) // 96)], [style], 5000))
            place = world.all_styles.index(style)
            facts["unseen_style"] = rate([int(k) == place for k in asked.scores["report"].style.argmax(1)])
        out[model] = facts
    return out


def write_card(world: IconWorld, work: Path, out: Path | None, build: Build, device: torch.device) -> None:
    folder, begun, every, seeds = out or PACKAGE, time.time(), build.every, build.seeds
    shipped = load_icons("icons", device=str(device), folder=folder)
    detectors = {name: MiniDetector.load(name, folder / "detectors", world) for name in trained(folder)}
    report = detectors["report"].labels
    judge, draws = judge_with(detectors), InBatches(shipped, build.sampled)
    known = [n for k in ("ordinary", "reserved") for n in world.names(k)[::every]]
    ordinary = world.names("ordinary")[::every]

    def progress(what: str) -> None:
        print(f"card: {what} ({time.time() - begun:.0f} s)", flush=True)

    def named(part: Judged, detector: str = "report") -> list[bool]:
        return wanted_concept(part, detector, report.concepts)

    direct = judge(draws, bare(known, range(seeds)))
    progress(f"{len(direct.shots)} bare prompts")
    shots = styles_of(world, ordinary, held_out=False)
    shots = shots[:: max(1, len(shots) // build.styled)]
    with_style = judge(draws, shots + styles_of(world, world.names("ordinary"), held_out=True)[:: max(1, every // 4)])
    progress(f"{len(with_style.shots)} style prompts")
    with_background = judge(draws, on_backgrounds(world, known, random.Random(0))[: build.backgrounds])
    progress(f"{len(with_background.shots)} background prompts")
    spoken = {
        kind: judge(draws, shots) for kind, shots in otherwise(world, world.names("ordinary")[:: max(1, every // 4)]).items()
    }
    novel = judge(draws, bare(world.novel, range(seeds)))
    progress("synonyms and descriptions")
    gold = gold_facts(world, folder, judge, report.concepts, build, str(device))
    progress("gold models")
    sheet_names = world.names("ordinary")[:: max(1, len(ordinary) * every // build.sheet)]
    contact_sheet(world, judge(draws, styled(sheet_names, world.styles, 9000)), folder / "contact_sheet.png")

    parts = (direct, with_style, with_background)
    judges: dict[str, Any] = {}
    for name in detectors:
        judges[name] = calibration(world, parts, name, report.concepts)
        judges[name]["training"] = json.loads((work / "detectors" / f"{name}.json").read_text("utf-8"))
        judges[name]["concept_accuracy"] = rate(named(direct, name))
        reasons = Counter(r for part in parts for r in validity(part.images, part.scores[name]) if r)
        judges[name]["invalid"] = {"n": sum(len(part.shots) for part in parts), **reasons}
    if len(detectors) > 1:
        judges["agreement"] = rate([a == b for p in parts for a, b in zip(p.named("report"), p.named("selection"), strict=True)])
    measured = judges["report"].pop("concepts")
    table = {
        name: {
            "sensitivity": measured[name]["sensitivity"]["value"] or 0.0,
            "images": measured[name]["sensitivity"]["n"],
            "false_positive": measured[name]["false_positive"]["value"],
        }
        for name in world.names("ordinary", "reserved")
    }
    card = {
        "date": date.today().isoformat(),
        "digest": shipped.digest(),
        "settings": {"sampler": "ddim", "steps": STEPS, "guidance": GUIDANCE, "seeds": seeds, "every": every},
        "concept": kind_rates(world, direct, named(direct), "ordinary", "reserved") | {"novel": rate(named(novel))},
        "style": style_rates(world, with_style, report),
        "background": background_rates(world, with_background, report),
        "spoken": {kind: rate(named(part)) for kind, part in spoken.items()},
        "gold": gold,
        "detectors": judges,
        "concepts": table,
        "training": training_facts(work),
        "sampling": {
            "images": sum(len(p.shots) for p in parts),
            "seconds": sum(p.seconds for p in parts),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
        },
        "megabytes": sum(p.stat().st_size for p in folder.rglob("*.safetensors")) / 1e6,
        "parameters": {p: sum(w.numel() for w in getattr(shipped, p).parameters()) for p in ("unet", "text_encoder", "vae")},
        "models": {model: (folder / where / "unet" / "config.json").is_file() for model, where in UNETS.items()},
    }
    scorer = ClipScorer(folder / "clip") if (folder / "clip" / "config.json").is_file() else None
    write_text(folder / "similar.json", json.dumps(similar(world, shipped, direct, scorer, known, seeds)) + "\n")
    write_text(folder / "card.json", json.dumps(card, indent=1) + "\n")
    write_text(folder / "CARD.md", markdown(world, card))
    progress("written")
    for line in bars(card):
        print(line)


def trained(folder: Path) -> list[str]:
    """The detectors that were trained. Raises SystemExit where the one that the card needs is missing."""
    found = [name for name in ARCHITECTURES if (folder / "detectors" / f"{name}.safetensors").is_file()]
    if "report" not in found:
        raise SystemExit(f"{folder} has no report detector; train it, pack again, then make the card.")
    return found


def similar(
    world: IconWorld, model: StableDiffusion, direct: Judged, scorer: ClipScorer | None, drawn: Sequence[str], seeds: int
) -> dict[str, dict[str, list[str]]]:
    """Concept -> source -> most similar concepts: by the hypernym tree, by the text encoder, and, of those that were drawn, by
    the images and by what the report detector takes them for."""
    names = world.names("ordinary", "reserved")
    kept = set(names)
    table = rankings(names, {"text": model.encode([article(n) for n in names]).last_token()})
    seen = {"confused": direct.scores["report"].concept[:, [world.index(n) for n in drawn]]}
    if scorer is not None:
        seen["image"] = scorer.embed_images(direct.images)
    per_concept = {source: x.reshape(len(drawn), seeds, -1).mean(1) for source, x in seen.items()}
    for name, found in rankings(drawn, per_concept, given=("confused",)).items():
        table[name] |= found
    for name in names:
        table[name]["hypernym"] = [n for n in world.near.get(name, ()) if n in kept]
    return table


def training_facts(work: Path) -> dict[str, Any]:
    """Of each UNet and of the text encoder: how long and how many samples."""
    facts = {}
    for path in sorted(work.glob("*/training.json")):
        found = json.loads(path.read_text("utf-8"))
        facts[path.parent.name] = {k: v for k, v in found.items() if k != "note"}
    return facts


def bars(card: dict[str, Any]) -> list[str]:
    """Each bar with what was reached, and by how much it is missed."""
    gold = card["gold"]
    wanted: list[tuple[str, dict[str, Any] | None, float, bool]] = [
        ("prompted concept named, ordinary concepts", card["concept"]["ordinary"], 0.95, True),
        ("style drawn as prompted, trained cells", card["style"]["trained_cells"], 0.92, True),
        ("style drawn as prompted, held-out cells", card["style"]["held_out_cells"], 0.75, True),
        ("background drawn as prompted", card["background"]["all"], 0.97, True),
        ("held-out synonyms understood", card["spoken"]["held_out_synonyms"], 0.60, True),
        ("gold model on reserved concepts", gold.get("icons-gold", {}).get("unseen_concepts"), 0.03, False),
        ("gold model on the reserved style", gold.get("icons-gold", {}).get("unseen_style"), 0.03, False),
        ("category gold model on its category", gold.get("icons-gold-category", {}).get("unseen_concepts"), 0.03, False),
        ("style gold model on its style", gold.get("icons-gold-style", {}).get("unseen_style"), 0.03, False),
    ]
    lines = []
    for what, r, bar, at_least in wanted:
        aim = f"bar {'at least' if at_least else 'at most'} {100 * bar:.0f} %"
        if r is None or r["value"] is None:
            lines.append(f"- {what}: {aim}: **not measured**, the model is not trained.")
            continue
        gap = 100 * ((r["value"] - bar) if at_least else (bar - r["value"]))
        verdict = f"reached, {gap:.1f} points to spare" if gap >= 0 else f"**missed by {-gap:.1f} points**"
        lines.append(f"- {what}: {percent(r)}; {aim}: {verdict}.")
    return lines


def markdown(world: IconWorld, card: dict[str, Any]) -> str:
    n = {kind: len(world.names(kind)) for kind in ("ordinary", "reserved", "novel")}
    judges, parameters, every = card["detectors"], card["parameters"], card["settings"]["every"]
    both = [name for name in ARCHITECTURES if name in judges]
    usable = sum(row["sensitivity"] >= SENSITIVE for row in card["concepts"].values())
    lines = [
        "# The world of icons",
        "",
        "Written by `python -m worlds.icons.build card`; do not edit. All numbers, with counts, are in `card.json`.",
        "",
        f"Stable Diffusion 1.x models at 48 x 48 pixels: UNet {parameters['unet'] / 1e6:.1f} M, text encoder "
        f"{parameters['text_encoder'] / 1e6:.1f} M, VAE {parameters['vae'] / 1e6:.2f} M parameters, {card['megabytes']:.1f} MB "
        f"in half precision with all that belongs to them. They draw {len(world.concepts)} icons in {len(world.styles)} styles. "
        "They exist so that the erasure of objects, styles, categories and attributes can be tested with exact ground truth. "
        "Their numbers say nothing about levels on full-size models.",
        "",
        f"## Bars ({STEPS} DDIM steps, guidance {GUIDANCE:g})",
        "",
        *bars(card),
        "",
        "The bars of the gold models say something only beside the first one: a model that draws nothing reaches them too.",
        "",
        f"{'All concepts were' if every == 1 else f'One concept in {every} was'} drawn, with {card['settings']['seeds']} "
        f"seed{'s' * (card['settings']['seeds'] > 1)}. Of the {len(card['concepts'])} concepts {usable} are recognised in at "
        f"least {100 * SENSITIVE:.0f} % of their images and can be targets.",
        "",
        "## What it draws",
        "",
        f"- reserved concepts: {percent(card['concept']['reserved'])}; novel concepts: {percent(card['concept']['novel'])}",
        f"- synonyms that captions used: {percent(card['spoken']['caption_synonyms'])}; descriptions: "
        f"{percent(card['spoken']['descriptions'])}",
        f"- concept in style prompts, trained cells: {percent(card['style']['concept_in_trained_cells'])}; held-out cells: "
        f"{percent(card['style']['concept_in_held_out_cells'])}",
        f"- concept in background prompts: {percent(card['background']['concept'])}",
        "",
        "| style | drawn as prompted (trained cells) |",
        "|---|---|",
        *(f"| {name} | {percent(r)} |" for name, r in card["style"]["per_style"].items()),
        "",
        "## Gold models",
        "",
        *(
            f"- {model}: ordinary concepts {percent(facts['ordinary'])}"
            + "".join(f"; {k.replace('_', ' ')} {percent(facts[k])}" for k in ("unseen_concepts", "unseen_style") if k in facts)
            for model, facts in card["gold"].items()
        ),
        *(f"- {model}: not trained." for model, there in card["models"].items() if not there),
        "",
        "## Detectors",
        "",
        "| | " + " | ".join(both) + " |",
        "|---|" + "---|" * len(both),
        *(
            f"| {label} | " + " | ".join(percent(pick(judges[name])) for name in both) + " |"
            for label, pick in (
                ("concept, renders", lambda d: d["training"]["renders"]["concept"]),
                ("style, renders", lambda d: d["training"]["renders"]["style"]),
                ("background, renders", lambda d: d["training"]["renders"]["background"]),
                ("concept, VAE round trips", lambda d: d["training"]["round_trip"]["concept"]),
                ("negatives called none", lambda d: d["training"]["none"]),
                ("bare prompts of the shipped model", lambda d: d["concept_accuracy"]),
            )
        ),
        "",
        "An image that shows the wrong thing counts against the detector here, so its own sensitivity is higher than on samples.",
        "",
        "## Training",
        "",
        *(
            f"- {part}: "
            + ", ".join(f"{k} {round(facts[k], 2)}" for k in ("steps", "batch", "samples", "seconds", "minutes") if k in facts)
            for part, facts in card["training"].items()
        ),
        "",
        "The text encoder has seen the pictures of all concepts in all styles, reserved and novel ones included, and is shared. "
        "Gold means: a UNet that never saw them.",
        "",
        "## Data and licences",
        "",
        f"{n['ordinary']} ordinary, {n['reserved']} reserved and {n['novel']} novel concepts, {len(world.held_out)} held-out "
        f"(concept, style) cells, {len(world.absent)} cells without a picture of their own. The names are those of the icon "
        "sets, after Unicode CLDR; groups of emoji come from emojibase-data (MIT), synonyms, hypernyms and glosses from WordNet "
        "3.1. The weights were trained on renders of:",
        "",
        "| style | npm package | author | licence |",
        "|---|---|---|---|",
        *(f"| {style} | {meta['package']} | {meta['author']} | {meta['licence']} |" for style, meta in world.icon_sets.items()),
        "",
        "Twitter's and Emoji One's icons are CC BY 4.0: keep this table with the weights.",
        "",
    ]
    return "\n".join(lines)
