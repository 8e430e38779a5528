"""Stage ``suite``: which concepts are similar to which, measured on the base model before any erasure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from efface.concepts.prompts import Case
from efface.detectors.clip_score import ClipScorer
from efface.detectors.mini import MiniDetector
from efface.io.files import write_text
from efface.models.icon_world import IconWorld
from efface.models.mini import HERE, WEIGHTS, load_mini

SAMPLES, STEPS, KEEP = 6, 16, 6


@torch.no_grad()
def write_similar(world: IconWorld, work: Path) -> None:
    """``similar.json``: concept -> {"image", "text", "confused"} -> most similar names first.

    image: cosine of mean image embeddings (independent encoder) of base images; text: cosine of the text encoder's last word
    token of "a <name>"; confused: the report detector's mean probability on images of the concept.
    """
    model, clip, detector = load_mini(), ClipScorer(WEIGHTS / "clip"), MiniDetector.load("report")
    names = world.names("ordinary", "reserved")
    cases = [Case("base", n, f"a {n}", 77_000 + s, 4.0) for n in names for s in range(SAMPLES)]
    images = model.sample(cases, STEPS)
    embedded = clip.embed_images(images).reshape(len(names), SAMPLES, -1).mean(1)
    text = model.encode([f"a {n}" for n in names]).last_token()
    columns = [detector.labels.concepts.index(n) for n in names]
    confusion = detector.score(images).concept.reshape(len(names), SAMPLES, -1).mean(1)[:, columns]
    table = rankings(names, {"image": embedded, "text": text, "confused": confusion}, given=("confused",))
    write_text(HERE / "similar.json", json.dumps(table, indent=1) + "\n")
    print(f"similar.json: {len(names)} concepts x {list(table[names[0]])}")


def rankings(
    names: Sequence[str], sources: Mapping[str, torch.Tensor], given: Sequence[str] = ()
) -> dict[str, dict[str, list[str]]]:
    """Name -> source -> the most similar other names: by the cosine of vectors (names, d), or by a matrix (names, names) where
    the source is one of ``given``."""
    table: dict[str, dict[str, list[str]]] = {n: {} for n in names}
    for source, x in sources.items():
        unit = torch.nn.functional.normalize(x, dim=1)
        matrix = x.clone() if source in given else unit @ unit.T
        matrix.fill_diagonal_(-torch.inf)
        for name, row in zip(names, matrix, strict=True):
            table[name][source] = [names[i] for i in row.topk(min(KEEP, len(names) - 1)).indices]
    return table
