"""Stage ``card``: what the packaged miniature can and cannot do, measured with efface's own adapter.

Writes ``card.json`` (numbers, read by the evaluation), ``CARD.md`` (the same for people) beside the weights and a contact
sheet of every concept in every style.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from efface.concepts.prompts import Case
from efface.detectors.clip_score import ClipScorer
from efface.detectors.mini import ARCHITECTURES, Labels, MiniDetector, Scores, validity
from efface.equations.statistics import wilson
from efface.io.files import write_text
from efface.models.icon_world import IconWorld
from efface.models.mini import HERE, load_mini

from .data import article, background_tensor, compose, renders_tensor

STEPS, GUIDANCE, SEEDS = 16, 4.0, 8
BARS = {"concept": 0.97, "style": 0.85, "background": 0.95, "render": 0.99}
BACKGROUND_IMAGES = 416
SENSITIVE = 0.95
SHEET = Path(__file__).parents[1] / "docs" / "images" / "mini_contact_sheet.png"
SHEET_BYTES = 600_000


@dataclass(frozen=True)
class Shot:
    """One image and what its prompt asked for; None where the prompt is silent."""

    prompt: str
    concept: str
    style: str | None
    background: str | None
    seed: int

    def case(self) -> Case:
        return Case("direct", self.concept, self.prompt, self.seed, GUIDANCE)


def bare(names: Sequence[str], seeds: Sequence[int]) -> list[Shot]:
    return [Shot(article(name), name, None, None, seed) for name in names for seed in seeds]


def styled(names: Sequence[str], styles: Sequence[str], first_seed: int) -> list[Shot]:
    cells = [(name, style) for name in names for style in styles]
    return [Shot(f"{article(style)} {name}", name, style, None, first_seed + i) for i, (name, style) in enumerate(cells)]


def on_backgrounds(world: IconWorld, names: Sequence[str], rng: random.Random) -> list[Shot]:
    """Every background equally often, each time with a concept drawn from ``names``."""
    pairs = [(rng.choice(names), world.backgrounds[k % len(world.backgrounds)]) for k in range(BACKGROUND_IMAGES)]
    return [Shot(f"{article(n)} on {article(b)} background", n, None, b, 3000 + k) for k, (n, b) in enumerate(pairs)]


@dataclass
class Judged:
    """Shots, their images (N, 3, 48, 48), and what each detector says."""

    shots: list[Shot]
    images: Tensor
    scores: dict[str, Scores]
    seconds: float

    def named(self, detector: str) -> list[int]:
        return [int(i) for i in self.scores[detector].top()]


class Draws(Protocol):
    """What a judged model must do; efface's adapters do."""

    def sample(self, cases: Sequence[Case], steps: int) -> Tensor: ...


Judge = Callable[[Draws, list[Shot]], Judged]


def judge_with(detectors: dict[str, MiniDetector]) -> Judge:
    def judge(model: Draws, shots: list[Shot]) -> Judged:
        begun = time.time()
        images = model.sample([s.case() for s in shots], STEPS)
        spent = time.time() - begun
        return Judged(shots, images, {name: d.score(images) for name, d in detectors.items()}, spent)

    return judge


def rate(flags: Sequence[bool]) -> dict[str, Any]:
    return wilson(sum(flags), len(flags)).json()


def wanted_concept(part: Judged, detector: str, names: tuple[str, ...]) -> list[bool]:
    return [names[i] == s.concept for i, s in zip(part.named(detector), part.shots, strict=True)]


def kind_rates(world: IconWorld, part: Judged, flags: Sequence[bool], *kinds: str) -> dict[str, Any]:
    """Rate of ``flags`` over the images of each kind of concept."""
    return {k: rate([ok for ok, s in zip(flags, part.shots, strict=True) if world.kind(s.concept) == k]) for k in kinds}


def style_rates(world: IconWorld, part: Judged, labels: Labels) -> dict[str, Any]:
    """Style drawn as prompted, by the report detector, and the concept beside it, in trained and in held-out cells."""
    found = part.scores["report"].style.argmax(1)
    style_ok = [labels.styles[int(k)] == s.style for k, s in zip(found, part.shots, strict=True)]
    concept_ok = wanted_concept(part, "report", labels.concepts)

    def over(select: Callable[[Shot], bool], flags: Sequence[bool] = style_ok) -> dict[str, Any]:
        return rate([ok for ok, s in zip(flags, part.shots, strict=True) if select(s)])

    def unseen(s: Shot) -> bool:
        return (s.concept, s.style) in world.held_out

    return {
        "all": over(lambda _: True),
        "trained_cells": over(lambda s: not unseen(s)),
        "held_out_cells": over(unseen),
        "concept_in_held_out_cells": over(unseen, concept_ok),
        "concept_in_trained_cells": over(lambda s: not unseen(s), concept_ok),
        "per_style": {name: over(lambda s, name=name: s.style == name and not unseen(s)) for name in world.styles},
    }


def background_rates(world: IconWorld, part: Judged, labels: Labels) -> dict[str, Any]:
    """Background drawn as prompted, by the report detector, and the concept beside it."""
    found = part.scores["report"].background.argmax(1)
    ok = [labels.backgrounds[int(k)] == s.background for k, s in zip(found, part.shots, strict=True)]
    return {
        "all": rate(ok),
        "concept": rate(wanted_concept(part, "report", labels.concepts)),
        "per_background": {
            name: rate([hit for hit, s in zip(ok, part.shots, strict=True) if s.background == name]) for name in world.backgrounds
        },
    }


def calibration(world: IconWorld, parts: Sequence[Judged], detector: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Sensitivity and false-positive rate of every concept on samples of the shipped model.

    Sensitivity: share of the images of bare and background prompts of the concept that are named so. False positives: share
    of all images of other concepts that are named so.
    """
    found = [(s, names[i]) for part in parts for s, i in zip(part.shots, part.named(detector), strict=True)]
    out = {}
    for name in world.names("ordinary", "reserved"):
        own = [label == name for s, label in found if s.concept == name and s.style is None]
        other = [label == name for s, label in found if s.concept != name]
        out[name] = {"sensitivity": rate(own), "false_positive": rate(other)}
    confusions = Counter((s.concept, label) for s, label in found if label != s.concept)
    own_all = [label == s.concept for s, label in found if s.style is None]
    n_classes = len(out)
    mean_fp = sum(v["false_positive"]["value"] for v in out.values()) / n_classes
    return {
        "sensitivity": sum(own_all) / len(own_all),
        "false_positive": mean_fp,
        "concepts": out,
        "confusions": [[a, b, n] for (a, b), n in confusions.most_common(20)],
    }


@torch.no_grad()
def memorisation(world: IconWorld, work: Path, samples: Tensor) -> dict[str, float]:
    """Mean squared pixel distance in [0, 1] to the nearest of 16 compositions on white of every training icon.

    ``fresh``: the same for new compositions of training icons, i.e. what a model that draws its icons exactly would reach;
    ``other_concept``: training icons to the nearest icon of another concept; ``random_pairs``: two random icons.
    """
    gen = torch.Generator().manual_seed(77)
    renders = renders_tensor(work / "renders.npz")
    kept = [
        (i, j)
        for i, c in enumerate(world.concepts)
        for j, s in enumerate(world.styles)
        if world.kind(c.name) != "novel" and (c.name, s) not in world.held_out
    ]
    i, j = [a for a, _ in kept], [b for _, b in kept]
    white = background_tensor(["white"]).expand(len(kept), 3)
    draw = lambda: compose(renders[i, j], white, gen) / 2 + 0.5  # noqa: E731
    pick = torch.randperm(len(kept), generator=gen)[:64]
    fresh = draw()[pick]
    concept = torch.tensor(i)
    nearest_sample, nearest_fresh = torch.full((len(samples),), torch.inf), torch.full((64,), torch.inf)
    nearest_other = torch.full((64,), torch.inf)
    for _ in range(16):
        bank = draw().flatten(1)
        nearest_sample = torch.minimum(nearest_sample, distances(samples, bank).amin(1))
        d = distances(fresh, bank)
        nearest_fresh = torch.minimum(nearest_fresh, d.amin(1))
        nearest_other = torch.minimum(nearest_other, d.masked_fill(concept[pick][:, None] == concept[None], torch.inf).amin(1))
    a, b = torch.randperm(len(bank), generator=gen)[:500], torch.randperm(len(bank), generator=gen)[:500]
    return {
        "samples": float(nearest_sample.mean()),
        "samples_lowest": float(nearest_sample.min()),
        "fresh": float(nearest_fresh.mean()),
        "other_concept": float(nearest_other.mean()),
        "random_pairs": float((bank[a] - bank[b]).square().mean()),
    }


def distances(x: Tensor, bank: Tensor) -> Tensor:
    """Mean squared differences (len(x), len(bank)) of flattened images."""
    return torch.cdist(x.flatten(1), bank).square() / bank.shape[1]


def contact_sheet(world: IconWorld, judged: Judged, path: Path) -> None:
    """Every concept (rows, four blocks side by side) in every style (columns), one sample each."""
    n_styles, side, margin, blocks, head = len(world.styles), 36, 112, 4, 16
    small = F.interpolate(judged.images, size=side, mode="area").permute(0, 2, 3, 1).mul(255).round().byte().numpy()
    names = [judged.shots[k].concept for k in range(0, len(small), n_styles)]
    per_block, width = -(-len(names) // blocks), margin + n_styles * side
    picture = Image.new("RGB", (blocks * width, head + per_block * side), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=10)
    for r, name in enumerate(names):
        block, row = divmod(r, per_block)
        x, y = block * width, head + row * side
        pen.text((x + margin - 5, y + side // 2), name, fill="black", font=font, anchor="rm")
        for k, style in enumerate(world.styles):
            if row == 0:
                pen.text((x + margin + k * side + side // 2, 2), style[:6], fill="black", font=font, anchor="mt")
            picture.paste(Image.fromarray(small[r * n_styles + k]), (x + margin + k * side, y))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    for colours in (256, 128, 64):  # a palette costs little on icons
        if path.stat().st_size > SHEET_BYTES:
            picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)


def write_card(world: IconWorld, work: Path) -> None:
    begun = time.time()
    shipped, gold = load_mini(), load_mini(gold=True)
    detectors = {name: MiniDetector.load(name) for name in ARCHITECTURES}
    labels = detectors["report"].labels
    names = labels.concepts
    judge = judge_with(detectors)
    rng = random.Random(0)
    known = world.names("ordinary", "reserved")

    def progress(what: str) -> None:
        print(f"card: {what} ({time.time() - begun:.0f} s)", flush=True)

    direct = judge(shipped, bare(known, range(SEEDS)))
    progress(f"{len(direct.shots)} bare prompts")
    style_part = judge(shipped, styled(known, world.styles, 1000))
    contact_sheet(world, style_part, SHEET)
    progress(f"{len(style_part.shots)} style prompts, {SHEET.name}")
    background_part = judge(shipped, on_backgrounds(world, known, rng))
    progress(f"{len(background_part.shots)} background prompts")

    concept_ok = {d: wanted_concept(direct, d, names) for d in detectors}
    per_concept = {
        name: rate([ok for ok, s in zip(concept_ok["report"], direct.shots, strict=True) if s.concept == name]) for name in known
    }
    concept = kind_rates(world, direct, concept_ok["report"], "ordinary", "reserved")
    style = style_rates(world, style_part, labels)
    background = background_rates(world, background_part, labels)

    parts = (direct, style_part, background_part)
    judges: dict[str, Any] = {}
    for name in detectors:
        judges[name] = calibration(world, parts, name, names)
        judges[name]["training"] = json.loads((work / "detectors" / f"{name}.json").read_text())
        judges[name]["concept_accuracy"] = rate(concept_ok[name])
        reasons = Counter(r for part in parts for r in validity(part.images, part.scores[name]) if r)
        judges[name]["invalid"] = {"n": sum(len(part.shots) for part in parts), **reasons}
    same = [a == b for part in parts for a, b in zip(part.named("report"), part.named("selection"), strict=True)]
    judges["agreement"] = rate(same)

    table = {
        name: {
            "group": world[name].group,
            "kind": world.kind(name),
            "bare": per_concept[name],
            "sensitivity": judges["report"]["concepts"][name]["sensitivity"]["value"],
            "false_positive": judges["report"]["concepts"][name]["false_positive"]["value"],
            "selection_sensitivity": judges["selection"]["concepts"][name]["sensitivity"]["value"],
            "selection_false_positive": judges["selection"]["concepts"][name]["false_positive"]["value"],
        }
        for name in known
    }
    sensitive = [name for name in known if table[name]["sensitivity"] >= SENSITIVE]
    groups = sorted({world[name].group for name in sensitive})

    gold_reserved = judge(gold, bare(world.reserved, range(SEEDS)))
    gold_ordinary = judge(gold, bare(world.names("ordinary"), [0]))
    shipped_novel, gold_novel = (judge(model, bare(world.novel, range(SEEDS))) for model in (shipped, gold))
    gold_style = judge(gold, styled(rng.sample(world.names("ordinary"), 48), [world.reserved_style], 5000))
    gold_style_ok = [labels.styles[int(k)] == world.reserved_style for k in gold_style.scores["report"].style.argmax(1)]
    gold_facts = {
        "gold_reserved": rate(wanted_concept(gold_reserved, "report", names)),
        "gold_ordinary": rate(wanted_concept(gold_ordinary, "report", names)),
        "gold_reserved_style": rate(gold_style_ok),
        "gold_novel": rate(wanted_concept(gold_novel, "report", names)),
        "shipped_novel": rate(wanted_concept(shipped_novel, "report", names)),
        "gold_reserved_drawn_as": {
            name: dict(
                Counter(
                    names[k] for k, s in zip(gold_reserved.named("report"), gold_reserved.shots, strict=True) if s.concept == name
                ).most_common(3)
            )
            for name in world.reserved
        },
    }
    progress("gold model")

    timed = judge(shipped, bare(rng.sample(known, 64), [11]))
    scorer = ClipScorer()
    zero_shot = scorer.zero_shot(direct.images, [article(name) for name in known], "{}").argmax(1)
    clip = {
        "zero_shot_on_samples": rate([known[int(k)] == s.concept for k, s in zip(zero_shot, direct.shots, strict=True)]),
        "training": json.loads((work / "clip-score" / "training.json").read_text()),
    }
    card = {
        "date": date.today().isoformat(),
        "digest": shipped.digest(),
        "gold_digest": gold.digest(),
        "settings": {"sampler": "ddim", "steps": STEPS, "guidance": GUIDANCE, "seeds_per_concept": SEEDS, "dtype": "float32"},
        "bars": BARS,
        "concept": concept,
        "style": style,
        "background": background,
        "concepts": table,
        "sensitive": {"bar": SENSITIVE, "concepts": len(sensitive), "groups": groups},
        "detectors": judges,
        "clip": clip,
        "gold": gold_facts,
        "seconds_64_images": {"seconds": timed.seconds, "threads": torch.get_num_threads(), "load": os.getloadavg()[0]},
        "memorisation": memorisation(world, work, timed.images),
        "megabytes": sum(p.stat().st_size for p in (HERE / "weights").rglob("*") if p.is_file()) / 1e6,
        "parameters": {
            part: sum(p.numel() for p in getattr(shipped, part).parameters()) for part in ("unet", "text_encoder", "vae")
        },
        "training": training_facts(work),
    }
    write_text(HERE / "card.json", json.dumps(card, indent=1) + "\n")
    write_text(HERE / "CARD.md", markdown(world, card))
    progress("written")
    for line in bars(card):
        print(line)


def training_facts(work: Path) -> dict[str, str]:
    """The last line of each stage's log beside the artefacts, where the stage was run with one."""
    found = {}
    for stage in ("vae", "base0", "base1"):
        log = work / f"{stage}.log"
        done = [line for line in log.read_text().splitlines() if line.startswith(f"{stage} done")] if log.exists() else []
        if done:
            found[stage] = done[-1].split(": ", 1)[1] if ": " in done[-1] else done[-1]
    return found


def percent(r: dict[str, Any]) -> str:
    if r["value"] is None:
        return "not measured (n = 0)"
    return f"{100 * r['value']:.1f} % ({r['k']}/{r['n']}, 95 % interval {100 * r['low']:.1f} to {100 * r['high']:.1f})"


def bars(card: dict[str, Any]) -> list[str]:
    """Each bar with what was reached."""
    measured = [
        ("ordinary concepts named by the report detector", card["concept"]["ordinary"], BARS["concept"]),
        ("style drawn as prompted, trained cells", card["style"]["trained_cells"], BARS["style"]),
        ("background drawn as prompted", card["background"]["all"], BARS["background"]),
        *(
            (
                f"{name} detector on unseen augmentations of renders",
                card["detectors"][name]["training"]["renders"]["concept"],
                BARS["render"],
            )
            for name in ARCHITECTURES
        ),
    ]
    lines = []
    for what, r, bar in measured:
        gap = 100 * (r["value"] - bar)
        verdict = f"reached, {gap:.1f} points above" if gap >= 0 else f"**missed by {-gap:.1f} points**"
        lines.append(f"- {what}: {percent(r)}; bar {100 * bar:.0f} %: {verdict}.")
    return lines


def markdown(world: IconWorld, card: dict[str, Any]) -> str:
    gold, mem, judges = card["gold"], card["memorisation"], card["detectors"]
    n = {kind: len(world.names(kind)) for kind in ("ordinary", "reserved", "novel")}
    parameters, speed = card["parameters"], card["seconds_64_images"]
    lines = [
        "# The miniature",
        "",
        "Written by `python -m miniature.build card`; do not edit. All numbers, with counts, are in `card.json`.",
        "",
        "A complete Stable Diffusion 1.x (same classes, same folder layout) at 48 x 48 pixels: "
        f"UNet {parameters['unet'] / 1e6:.1f} M, "
        f"text encoder {parameters['text_encoder'] / 1e6:.1f} M, VAE {parameters['vae'] / 1e6:.2f} M parameters, "
        f"{card['megabytes']:.1f} MB in half precision together with the gold model's UNet, two detectors and "
        "an image-text scorer. It draws icons. It exists so that concept erasure can be developed, tested and compared on a CPU "
        "with exact ground truth. It is not a picture generator, and its numbers say nothing about levels on full-size models.",
        "",
        "## Data and licences",
        "",
        f"{len(world.concepts)} concepts in {len(world.group_words)} groups, {len(world.styles)} icon sets as styles, "
        f"{len(world.backgrounds)} flat backgrounds. The weights were trained on renders of these icon sets:",
        "",
        "| style | npm package | author | licence |",
        "|---|---|---|---|",
        *(f"| {style} | {meta['package']} | {meta['author']} | {meta['licence']} |" for style, meta in world.icon_sets.items()),
        "",
        "Sets under share-alike licences were left out on purpose. Icons were rendered at 96 pixels, scaled, shifted, mirrored "
        "and put on flat colours. Twitter's and Emoji One's icons are CC BY 4.0: keep this table with the weights.",
        "",
        "## Split, decided before training",
        "",
        f"- ordinary: {n['ordinary']} concepts; the gold model and the shipped model were trained on them.",
        f"- reserved: {', '.join(world.reserved)}, and the style {world.reserved_style}: only the shipped model saw them. "
        "The gold model (`gold/unet`) is the model that never saw them.",
        f"- novel: {', '.join(world.novel)}: neither model saw a picture of them; the detectors did.",
        f"- {len(world.held_out)} (concept, style) cells that neither model saw.",
        "",
        "The text encoder was trained with the gold model, from a contrastive initialisation that has seen all names with "
        "their pictures, reserved and novel ones included; it is shared. Gold therefore means: a UNet that never saw the "
        "concept. Reserved concepts were "
        "learned last, hence perhaps less deeply than ordinary ones.",
        "",
        *(f"- training of {stage}: {fact}" for stage, fact in card["training"].items()),
        "",
        f"## Bars ({STEPS} DDIM steps, guidance {GUIDANCE:g})",
        "",
        *bars(card),
        f"- concepts with sensitivity of at least {100 * SENSITIVE:.0f} %: {card['sensitive']['concepts']} in "
        f"{len(card['sensitive']['groups'])} groups ({', '.join(card['sensitive']['groups'])}).",
        "",
        "## What it draws",
        "",
        f"- reserved concepts: {percent(card['concept']['reserved'])}",
        f"- style, held-out cells: {percent(card['style']['held_out_cells'])}; concept in these images: "
        f"{percent(card['style']['concept_in_held_out_cells'])}",
        f"- concept in style prompts, trained cells: {percent(card['style']['concept_in_trained_cells'])}",
        f"- concept in background prompts: {percent(card['background']['concept'])}",
        "",
        "| style | drawn as prompted (trained cells) |",
        "|---|---|",
        *(f"| {name} | {percent(r)} |" for name, r in card["style"]["per_style"].items()),
        "",
        "| background | drawn as prompted |",
        "|---|---|",
        *(f"| {name} | {percent(r)} |" for name, r in card["background"]["per_background"].items()),
        "",
        "## Gold model and controls",
        "",
        f"- gold model on reserved concepts: {percent(gold['gold_reserved'])} (should be near 0)",
        f"- gold model on ordinary concepts: {percent(gold['gold_ordinary'])}",
        f"- gold model on the reserved style: {percent(gold['gold_reserved_style'])}",
        f"- novel concepts, shipped model: {percent(gold['shipped_novel'])}; gold model: {percent(gold['gold_novel'])}",
        "- the gold model draws instead: "
        + "; ".join(f"{name}: {', '.join(drawn)}" for name, drawn in gold["gold_reserved_drawn_as"].items()),
        "",
        "## Detectors",
        "",
        "| | report | selection |",
        "|---|---|---|",
        *(
            f"| {label} | {percent(pick(judges['report']))} | {percent(pick(judges['selection']))} |"
            for label, pick in (
                ("concept, renders", lambda d: d["training"]["renders"]["concept"]),
                ("style, renders", lambda d: d["training"]["renders"]["style"]),
                ("background, renders", lambda d: d["training"]["renders"]["background"]),
                ("concept, VAE round trips", lambda d: d["training"]["round_trip"]["concept"]),
                ("style, VAE round trips", lambda d: d["training"]["round_trip"]["style"]),
                ("negatives called none", lambda d: d["training"]["none"]),
                ("bare prompts of the shipped model", lambda d: d["concept_accuracy"]),
            )
        ),
        "",
        f"Agreement of the two on samples: {percent(judges['agreement'])}. Samples called invalid by the report detector: "
        f"{sum(v for k, v in judges['report']['invalid'].items() if k != 'n')} of {judges['report']['invalid']['n']}. "
        "Sensitivity here includes the mistakes of the model: an image that shows the wrong thing counts against the detector, "
        "so the detectors' own sensitivity is usually higher.",
        "",
        "Most frequent mistakes on samples (prompted, named, count): "
        + "; ".join(f"{a} as {b} ({k})" for a, b, k in judges["report"]["confusions"][:12]),
        "",
        "Image-text scorer: zero-shot naming among "
        f"{len(card['concepts'])} names on samples of bare prompts {percent(card['clip']['zero_shot_on_samples'])}; "
        f"on renders among {len(world.concepts)} names top-1 {100 * card['clip']['training']['top1']:.1f} %, "
        f"top-5 {100 * card['clip']['training']['top5']:.1f} %.",
        "",
        "## Memorisation",
        "",
        "With one picture per cell the model can hardly do other than remember. Mean squared pixel distance (range [0, 1]) to "
        f"the nearest of 16 compositions of every training icon: samples {mem['samples']:.4f} (lowest "
        f"{mem['samples_lowest']:.4f}); "
        f"new compositions of the training icons themselves {mem['fresh']:.4f}; nearest icon of another concept "
        f"{mem['other_concept']:.4f}; two random icons {mem['random_pairs']:.4f}.",
        "",
        "## Speed",
        "",
        f"64 images in {STEPS} steps: {speed['seconds']:.1f} s on {speed['threads']} CPU threads "
        f"(load average {speed['load']:.1f} at the time).",
        "",
        "## Every concept",
        "",
        f"Report detector. Named: bare prompts, {SEEDS} seeds. Sensitivity: background prompts too. False positives: all.",
        "",
        "| concept | group | split | named | sensitivity | false positives |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {row['group']} | {row['kind']} | {row['bare']['k']}/{row['bare']['n']} "
            f"({100 * row['bare']['low']:.0f} to {100 * row['bare']['high']:.0f} %) "
            f"| {row['sensitivity']:.3f} | {row['false_positive']:.4f} |"
            for name, row in card["concepts"].items()
        ),
        "",
    ]
    return "\n".join(lines)
