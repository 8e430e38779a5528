"""Training data drawn from the renders: augmented compositions and captions. All randomness from the caller's rng."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from efface.models.icon_world import IconWorld

from .networks import IMAGE_PX

Drawn = TypeVar("Drawn")
# Flat colours in [0, 1]; chosen apart from each other and from most icon outlines.
BACKGROUND_RGB = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.10, 0.10, 0.12),
    "red": (0.85, 0.25, 0.25),
    "yellow": (0.98, 0.86, 0.35),
    "green": (0.45, 0.76, 0.42),
    "blue": (0.36, 0.58, 0.90),
    "purple": (0.62, 0.42, 0.78),
    "orange": (0.96, 0.62, 0.28),
}


def compose(
    rgba: Tensor,
    background: Tensor,
    gen: torch.Generator,
    size: int = IMAGE_PX,
    strength: float = 1.0,
    p_flip: float = 0.5,
) -> Tensor:
    """Premultiplied renders (B, H, W, 4) uint8 on flat backgrounds (B, 3) -> images (B, 3, size, size) in [-1, 1].

    Random scale 0.78-0.95 and shift up to 6 %, both widened by ``strength``; mirrored with probability ``p_flip``. The images
    lie where the renders lie; the random numbers come from the CPU, so that they are the same on every device.
    """
    n = len(rgba)
    uniform = lambda lo, hi: lo + (hi - lo) * torch.rand(n, generator=gen)  # noqa: E731
    scale = uniform(0.865 - 0.085 * strength, 0.865 + 0.085 * strength)
    flip = torch.where(torch.rand(n, generator=gen) < p_flip, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = flip / scale, 1 / scale
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-0.12, 0.12) * strength, uniform(-0.12, 0.12) * strength
    theta, background = theta.to(rgba.device), background.to(rgba.device)
    x = rgba.permute(0, 3, 1, 2).float() / 255
    x = F.interpolate(x, size=(size * 4 // 3, size * 4 // 3), mode="area") if size * 2 > x.shape[-1] else F.avg_pool2d(x, 2)
    grid = F.affine_grid(theta, [n, 4, size, size], align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False)
    return (x[:, :3] + (1 - x[:, 3:]) * background[:, :, None, None]).clamp(0, 1) * 2 - 1


def draw_backgrounds(world: IconWorld, n: int, rng: random.Random) -> list[str]:
    """White half of the time, else one of the other seven."""
    return ["white" if rng.random() < 0.5 else rng.choice(world.backgrounds[1:]) for _ in range(n)]


def background_tensor(names: list[str]) -> Tensor:
    return torch.tensor([BACKGROUND_RGB[name] for name in names])


def article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


BARE_TEMPLATES = (
    "{a}",
    "{a}",
    "{n}",
    "{n}",
    "a picture of {a}",
    "an image of {a}",
    "a photo of {a}",
    "an icon of {a}",
    "an emoji of {a}",
    "the {n}",
)
STYLE_FIRST = ("a {s} {n}", "{s} {n}", "{s} style {n}", "a {s} style picture of {a}", "{s} {a}", "a {s} icon of {a}")
STYLE_LAST = ("{a} in {s} style", "{a} in the style of {s}", "{n} by {s}")


def caption(world: IconWorld, name: str, style: str, background: str, rng: random.Random, p_style: float = 0.7) -> str:
    """One caption of an image. Names dominate; group words, synonyms and implicit descriptions stand in for them."""
    concept = world[name]
    r = rng.random()
    if r < 0.08:
        a = n = world.group_words[concept.group]
    elif r < 0.20 and (said := world.caption_synonyms(name)):
        n = rng.choice(said)
        a = article(n)
    elif 0.20 <= r < 0.27 and concept.implicit:
        a = n = rng.choice(concept.implicit)
    else:
        n, a = name, article(name)
    if rng.random() < p_style:
        text = rng.choice(STYLE_FIRST if rng.random() < 0.75 else STYLE_LAST).format(a=a, n=n, s=style)
    else:
        text = rng.choice(BARE_TEMPLATES).format(a=a, n=n)
    if background != "white" or rng.random() < 0.3:
        text += rng.choice((" on a {b} background", " on {b}", ", {b} background")).format(b=background)
    return text


def cells(world: IconWorld, *kinds: str, reserved_style: bool) -> list[tuple[int, int]]:
    """(concept index, style index) of every training cell of the given splits; held-out and absent cells never appear."""
    return [
        (i, j)
        for i, c in enumerate(world.concepts)
        for j, s in enumerate(world.styles)
        if world.kind(c.name) in kinds
        and (reserved_style or s != world.reserved_style)
        and (c.name, s) not in world.held_out
        and world.has(c.name, s)
    ]


def renders_tensor(path: Path) -> Tensor:
    """(concept, style, 96, 96, 4) uint8, as stage ``render`` wrote it: 28 MB compressed to 2.5, so that the file can
    travel to a machine without a network."""
    return torch.from_numpy(np.load(path)["renders"])


def ahead(draw: Callable[[int], Drawn], first: int, workers: int) -> Iterator[Drawn]:
    """``draw(step)`` for step = first, first + 1, and so on. So many threads draw ahead; without any it is drawn when asked for.

    A step's numbers must follow from the step alone: then they are the same with any number of threads.
    """
    if not workers:
        yield from map(draw, count(first))
    pool, steps = ThreadPoolExecutor(workers), count(first)
    try:
        waiting = deque(pool.submit(draw, next(steps)) for _ in range(2 * workers))
        while True:
            yield waiting.popleft().result()
            waiting.append(pool.submit(draw, next(steps)))
    finally:
        pool.shutdown(cancel_futures=True)
