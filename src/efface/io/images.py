"""Images: resized, blurred, and as PNG files."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..errors import EvaluationError
from .files import atomic_write


def to_pixels(images: Tensor, *, hidden: bool = False) -> Any:
    """(N, 3, H, W) in [0, 1] -> (N, H, W, 3) uint8. ``hidden``: blurred, because an image may show something sensitive. Raises
    EvaluationError for non-finite images."""
    if not bool(images.isfinite().all()):
        raise EvaluationError("the model produced non-finite images (NaN); use --dtype float32 or a smaller patch scale.")
    pixels = (images.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    return np.stack([blurred(image) for image in pixels]) if hidden else pixels


def resized(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) with a shorter side of so many pixels, anti-aliased, between 0 and 1."""
    height, width = images.shape[-2:]
    scale = side / min(height, width)
    size = (round(height * scale), round(width * scale))
    return F.interpolate(images.float(), size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def encoded_png(images: Tensor, at_most: int, *, hidden: bool = False) -> str:
    """The first of (N, 3, H, W) images as base64 PNG, shrunk to at most so many pixels: small enough for a card or a record.
    ``hidden``: blurred, because it may show something sensitive."""
    image = Image.fromarray(to_pixels(images[:1], hidden=hidden)[0])
    image.thumbnail((at_most, at_most))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def decoded_png(encoded: str) -> Image.Image:
    """The picture again, in colour."""
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


BLURRED_SIDE = 8
"""Pixels that are left of the shorter side of a blurred picture: colours and nothing that anybody could make out."""


def blurred(pixels: Any) -> Any:
    """(H, W, 3) uint8 -> the same shape, of which so few pixels were kept that no detail can be recovered."""
    image = Image.fromarray(pixels)
    scale = BLURRED_SIDE / min(image.size)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))


def write_png(pixels: Any, path: Path) -> None:
    def write(temporary: Path) -> None:
        Image.fromarray(pixels).save(temporary, format="PNG")

    atomic_write(path, write)


def join_pictures(folder: Path, count: int, path: Path) -> None:
    """``<i>-before.png`` above ``<i>-after.png`` of a folder side by side, enlarged to at least 96 pixels; a missing one stays
    white. Nothing is written when all are missing."""
    found = {(i, w): folder / f"{i}-{w}.png" for i in range(count) for w in ("before", "after")}
    images = {key: Image.open(p).convert("RGB") for key, p in found.items() if p.is_file()}
    if not images:
        return
    side = max(96, *(image.width for image in images.values()))
    sheet = Image.new("RGB", (side * count, 2 * side), "white")
    for (i, which), image in images.items():
        sheet.paste(image.resize((side, side), Image.Resampling.BICUBIC), (side * i, side * (which == "after")))
    write_png(np.asarray(sheet), path)


def write_grid(images: Tensor, columns: int, path: Path, zoom: int = 0, *, hidden: bool = False) -> None:
    """One picture, ``columns`` images per row; small images are enlarged to at least 96 pixels. ``hidden``: every image is
    blurred, because it may show something sensitive."""
    pixels = to_pixels(images, hidden=hidden)
    zoom = zoom or max(1, -(-96 // pixels.shape[1]))
    rows = [np.concatenate(pixels[i : i + columns], axis=1) for i in range(0, len(pixels), columns)]
    grid = np.concatenate(rows, axis=0)
    size = (grid.shape[1] * zoom, grid.shape[0] * zoom)
    write_png(np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)), path)
