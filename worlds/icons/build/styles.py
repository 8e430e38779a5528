"""Styles that are computed from a picture: pure functions of a premultiplied render (H, W, 4) uint8 to another one.

They are free of licences of their own and unlimited, and no model is trained on them: a style that nobody has seen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Render = NDArray[np.uint8]
Plane = NDArray[np.float32]
PITCH = 8
"""Pixels between halftone dots at 96 pixels; half of that at the 48 that the models draw."""


def unpacked(render: Render) -> tuple[Plane, Plane]:
    """Straight colour (H, W, 3), white where there is nothing, and opacity (H, W), both in [0, 1]."""
    x = render.astype(np.float32) / 255
    alpha = x[..., 3]
    colour = np.where(alpha[..., None] > 0, x[..., :3] / np.maximum(alpha[..., None], 1e-6), 1.0)
    return colour.clip(0, 1).astype(np.float32), alpha


def packed(colour: Plane, alpha: Plane) -> Render:
    """The inverse: premultiplied, rounded."""
    return np.round(np.concatenate([colour * alpha[..., None], alpha[..., None]], -1).clip(0, 1) * 255).astype(np.uint8)


def blurred(x: Plane, sigma: float) -> Plane:
    """Gaussian blur over the first two axes; edges are repeated."""
    radius = int(3 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        width = [(0, 0)] * x.ndim
        width[axis] = (radius, radius)
        wide = np.pad(x, width, mode="edge")
        n = x.shape[axis]
        x = sum(t * wide.take(range(k, k + n), axis) for k, t in enumerate(taps)).astype(np.float32)
    return x


def halftone(render: Render) -> Render:
    """Round dots on white paper of the icon's outline: a dot has the colour of its square and an area that grows with its ink."""
    colour, alpha = unpacked(render)
    h, w = alpha.shape
    smooth = blurred(colour, PITCH / 3)
    ys, xs = np.mgrid[0:h, 0:w]
    cy, cx = (((q // PITCH) * PITCH + PITCH // 2).clip(0, n - 1) for q, n in ((ys, h), (xs, w)))
    dot = smooth[cy, cx]
    ink = (1 - dot.min(-1)).clip(0, 1)
    radius = PITCH * np.sqrt((0.1 + 0.9 * ink) / np.pi)
    distance = np.hypot(ys + 0.5 - cy - 0.5, xs + 0.5 - cx - 0.5)
    cover = (radius - distance + 0.5).clip(0, 1)[..., None]
    return packed((cover * dot + (1 - cover)).astype(np.float32), alpha)


def sketch(render: Render) -> Render:
    """Dark lines where colour or outline change, on white paper of the icon's outline."""
    colour, alpha = unpacked(render)
    over_white = colour * alpha[..., None] + 1 - alpha[..., None]
    planes = blurred(np.concatenate([over_white, alpha[..., None]], -1), 1.0)
    steep = sum(np.gradient(planes, axis=axis) ** 2 for axis in (0, 1)).max(-1)
    line = (np.sqrt(steep) * 7).clip(0, 1)
    return packed(np.repeat(1 - 0.85 * line[..., None], 3, -1).astype(np.float32), np.maximum(alpha, line * (alpha > 0)))


def watercolour(render: Render) -> Render:
    """Soft, pale paint that runs over its edges and dries darker along them."""
    colour, alpha = unpacked(render)
    h, w = alpha.shape
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
    dy, dx = 2.5 * np.sin(xs / 5 + np.sin(ys / 9)), 2.5 * np.sin(ys / 6 + np.cos(xs / 8))
    rows, columns = ((q + d).round().astype(int).clip(0, n - 1) for q, d, n in ((ys, dy, h), (xs, dx, w)))
    run, edge = blurred(colour[rows, columns], 2.0), blurred(alpha[rows, columns], 1.5)
    rim = (4 * edge * (1 - edge))[..., None]
    grain = 0.06 * np.sin(xs * 0.9 + 3 * np.sin(ys * 0.35))[..., None]
    pale = run + 0.35 * (1 - run) - 0.25 * rim * (1 - run) + grain
    return packed(pale.clip(0, 1).astype(np.float32), (0.9 * edge).astype(np.float32))


STYLES: dict[str, Callable[[Render], Render]] = {"halftone": halftone, "sketch": sketch, "watercolour": watercolour}
