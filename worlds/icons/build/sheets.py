"""The renders as files: one lossless picture per icon set, smaller than a compressed array, so that they can travel to a machine
without a network; and all styles in memory, the computed ones included."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from efface.models.icon_world import IconWorld

from .styles import STYLES

COLUMNS = 27


def write(renders: np.ndarray, styles: tuple[str, ...], work: Path) -> None:
    """renders: (concept, style, side, side, 4) uint8 -> ``renders-STYLE.webp``, tiles row by row."""
    side, rows = renders.shape[2], -(-len(renders) // COLUMNS)
    for j, style in enumerate(styles):
        tiles = np.zeros((rows * COLUMNS, side, side, 4), np.uint8)
        tiles[: len(renders)] = renders[:, j]
        sheet = tiles.reshape(rows, COLUMNS, side, side, 4).transpose(0, 2, 1, 3, 4).reshape(rows * side, COLUMNS * side, 4)
        Image.fromarray(sheet).save(work / f"renders-{style}.webp", lossless=True, exact=True, quality=40, method=3)


def read(style: str, n: int, work: Path) -> np.ndarray:
    """(n, side, side, 4) uint8."""
    sheet = np.asarray(Image.open(work / f"renders-{style}.webp").convert("RGBA"))
    side = sheet.shape[1] // COLUMNS
    tiles = sheet.reshape(-1, side, COLUMNS, side, 4).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 4)
    return tiles[:n]


def all_renders(world: IconWorld, work: Path) -> torch.Tensor:
    """(concept, style, side, side, 4) uint8 of ``world.all_styles``. What is computed once is kept beside the sheets."""
    path = work / "renders.npy"
    if not path.exists():
        sets = np.stack([read(style, len(world.concepts), work) for style in world.styles], 1)
        sources = []
        for i, concept in enumerate(world.concepts):
            drawn = [j for j, style in enumerate(world.styles) if world.has(concept.name, style)]
            sources.append(sets[i, drawn[i % len(drawn)]])  # each computed style takes its pictures from all sets in turn
        with ThreadPoolExecutor() as pool:
            made = [np.stack(list(pool.map(STYLES[name], sources))) for name in world.novel_styles]
        out = np.concatenate([sets, np.stack(made, 1)], 1)
        np.save(path.with_suffix(".part.npy"), out)
        path.with_suffix(".part.npy").rename(path)  # whole or absent: stages that run side by side look for it
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def noise(world: IconWorld) -> np.ndarray:
    """Renders of nothing, for a test of the build that fetches no icons."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (len(world.concepts), len(world.styles), 6, 6, 4), np.uint8)
    out = coarse.repeat(16, 2).repeat(16, 3)
    for name, style in world.absent:
        out[world.index(name), world.styles.index(style)] = 0
    return out
