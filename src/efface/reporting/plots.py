"""Plots as SVG text, drawn by hand. Pure functions: numbers in, one well-formed ``<svg>`` element out.

Colours come from the page's style sheet by class, so that the plots follow light and dark; shape and label say the same as
colour. The drawing is about as wide as a phone, which keeps its text readable without shrinking.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH = 356.0
CHAR = 8.0
"""Width of a bold character at the 12 px of plot labels; generous, because the reader's font is not known."""

Box = tuple[float, float, float, float]
Rate = tuple[float, float, float]
"""A rate and its interval."""

SERIES = 5
"""Colours of lines; a label at the end of each says which it is."""
POLYGONS = {"guarded": (6, 0.0, "patch"), "guard": (5, 0.0, "guard"), "gold": (4, 0.0, "gold"), "base": (3, 0.0, "base")}
"""Kind of entrant -> corners of its marker, degrees it is turned by, and class of its colour."""


@dataclass(frozen=True)
class Point:
    """An entrant in the trade-off plot. Values are rates in 0..1; ``kind`` chooses the marker."""

    label: str
    kind: str
    x: float
    y: float
    x_interval: tuple[float, float]
    y_interval: tuple[float, float]


def _clean(text: str, limit: int = 24) -> str:
    """Text that XML can hold, cut to ``limit`` characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _svg(width: float, height: float, label: str, css: str = "plot") -> ET.Element:
    label = _clean(label, 500)
    return ET.Element("svg", {"class": css, "viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label})


def _add(parent: ET.Element, tag: str, css: str, text: str | None = None, **attributes: float | str) -> ET.Element:
    named = {k.replace("_", "-"): f"{v:.1f}" if isinstance(v, float) else str(v) for k, v in attributes.items()}
    child = ET.SubElement(parent, tag, {"class": css, **named})
    child.text = text if text is None else _clean(text, 60)
    return child


def _line(parent: ET.Element, css: str, x1: float, y1: float, x2: float, y2: float) -> None:
    _add(parent, "line", css, x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2))


def _text(parent: ET.Element, css: str, text: str, x: float, y: float, anchor: str = "start") -> None:
    _add(parent, "text", css, text, x=float(x), y=float(y), text_anchor=anchor)


def _marker(parent: ET.Element, kind: str, x: float, y: float, r: float = 5.5) -> None:
    """patch: circle; patch and guard: hexagon; guard: pentagon; trivial: square; gold: diamond; unmodified model: triangle;
    anything else: triangle on its tip."""
    if kind == "patch":
        _add(parent, "circle", "mark patch", cx=x, cy=y, r=r)
    elif kind == "trivial":
        _add(parent, "rect", "mark trivial", x=x - r + 0.5, y=y - r + 0.5, width=2 * r - 1, height=2 * r - 1)
    else:
        sides, turn, css = POLYGONS.get(kind, (3, 180.0, "base"))
        angles = [math.radians(turn - 90 + 360 * i / sides) for i in range(sides)]
        corners = " ".join(f"{x + (r + 1) * math.cos(a):.1f},{y + (r + 1) * math.sin(a):.1f}" for a in angles)
        _add(parent, "polygon", f"mark {css}", points=corners)


def marker(kind: str) -> str:
    """The plot's marker alone, for a legend."""
    svg = _svg(16, 16, f"marker of {kind}", "key")
    _marker(svg, kind, 8.0, 8.0)
    return ET.tostring(svg, encoding="unicode")


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _place(x: float, y: float, width: float, hard: Sequence[Box], soft: Sequence[Box], frame: Box) -> tuple[Box, bool]:
    """Where a label of ``width`` goes: the nearest of 24 places around (x, y) that covers least, and whether it is far."""
    best: tuple[float, Box, bool] | None = None
    for distance in (9.0, 26.0, 44.0):
        for dx, dy in ((1, -1), (-1, -1), (1, 1), (-1, 1), (1, 0), (-1, 0), (0, -1), (0, 1)):
            cx, cy = x + dx * (distance + width / 2), y + dy * (distance + (6 if dx == 0 else 2))
            box = (cx - width / 2, cy - 7.5, cx + width / 2, cy + 7.5)
            outside = 15 * width - _overlap(box, frame)
            cost = 20 * outside + 5 * sum(_overlap(box, b) for b in hard) + sum(_overlap(box, b) for b in soft) + distance
            if best is None or cost < best[0] - 1e-6:
                best = (cost, box, distance > 9.0)
    assert best is not None
    return best[1], best[2]


def tradeoff(points: Sequence[Point], erased: str = "target erased, image valid") -> str:
    """Near concepts preserved (x) against target erased with a valid image (y), with both intervals per entrant. ``erased``: the
    name of another y."""
    left, top, side, right = 52.0, 14.0, 232.0, 84.0
    said = "; ".join(f"{p.label}: preserved {100 * p.x:.1f}%, erased {100 * p.y:.1f}%" for p in points)
    svg = _svg(left + side + right, top + side + 46, f"Trade-off of erasure and preservation. {said}")

    def at(x: float, y: float) -> tuple[float, float]:  # 4 % of air on every side, for markers on the border
        return left + side * (0.04 + 0.92 * x), top + side * (0.96 - 0.92 * y)

    _add(svg, "rect", "frame", x=left, y=top, width=side, height=side)
    for i in range(5):
        tick = i / 4
        (gx, gy), name = at(tick, tick), f"{25 * i}%"
        _line(svg, "grid", gx, top, gx, top + side)
        _line(svg, "grid", left, gy, left + side, gy)
        _text(svg, "tick", name, gx, top + side + 16, "middle")
        _text(svg, "tick", name, left - 6, gy + 4, "end")
    _text(svg, "axis", "near concepts preserved", left + side / 2, top + side + 38, "middle")
    turned = _add(svg, "text", "axis", erased, text_anchor="middle")
    turned.set("transform", f"translate(12 {top + side / 2:.1f}) rotate(-90)")
    for name, y in (("ideal", 1.0), ("unmodified", 0.0)):
        cx, cy = at(1.0, y)
        _add(svg, "circle", "corner", cx=cx, cy=cy, r=11.0)
        _text(svg, "axis", name, left + side + 8, cy + 4)
    hard: list[Box] = []
    soft: list[Box] = []
    for p in points:
        (x, y), (x0, y0), (x1, y1) = at(p.x, p.y), at(p.x_interval[0], p.y_interval[0]), at(p.x_interval[1], p.y_interval[1])
        _line(svg, f"bar {p.kind}", x0, y, x1, y)
        _line(svg, f"bar {p.kind}", x, y0, x, y1)
        hard.append((x - 7, y - 7, x + 7, y + 7))
        soft += [(x0, y - 2, x1, y + 2), (x - 2, y1, x + 2, y0)]
    for p in points:
        _marker(svg, p.kind, *at(p.x, p.y))
    for p in points:
        x, y = at(p.x, p.y)
        label = _clean(p.label, 20)
        box, far = _place(x, y, CHAR * len(label) + 2, hard, soft, (left, top, left + side, top + side))
        hard.append(box)
        if far:
            edge = box[0] if box[0] > x else box[2] if box[2] < x else (box[0] + box[2]) / 2
            _line(svg, "leader", x, y, edge, (box[1] + box[3]) / 2)
        _text(svg, "label", label, (box[0] + box[2]) / 2, box[3] - 3.5, "middle")
    return ET.tostring(svg, encoding="unicode")


@dataclass(frozen=True)
class Line:
    """A rate that grows along an axis: points (x, value), and the interval of the last one. ``control``: drawn dashed."""

    label: str
    points: Sequence[tuple[float, float]]
    low: float
    high: float
    control: bool = False


def growth(lines: Sequence[Line], axis: str, what: str = "cases in which the target is back") -> str:
    """Shares of ``what`` over a logarithmic axis from 1, one line each, with the interval at its end. An x of 0 stands at the
    left edge, where nothing has been spent."""
    most = max(x for line in lines for x, _ in line.points)
    ticks = [t for t in (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000) if t <= most] or [1]
    span = math.log(max(most, 2))
    return _lines(lines, axis, what, ticks, lambda x: 0.0 if x <= 0 else 0.06 + 0.94 * math.log(max(x, 1)) / span)


def thresholds(lines: Sequence[Line], axis: str, what: str) -> str:
    """Shares of ``what`` over the thresholds between 0 and 1 at which they were counted."""
    return _lines(lines, axis, what, sorted({x for line in lines for x, _ in line.points}), lambda x: x)


def _lines(lines: Sequence[Line], axis: str, what: str, ticks: Sequence[float], along: Callable[[float], float]) -> str:
    """``along``: where a value lies on the horizontal axis, from 0 to 1."""
    left, right, top, bottom = 44.0, WIDTH - 146, 10.0, 160.0

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * along(x), bottom - (bottom - top) * y

    said = "; ".join(f"{line.label}: {100 * line.points[-1][1]:.0f}% at {line.points[-1][0]:g}" for line in lines)
    svg = _svg(WIDTH, bottom + 40, f"Share of {what}, over {axis}. {said}")
    for share in (0.0, 0.5, 1.0):
        y = at(1, share)[1]
        _line(svg, "grid", left, y, right, y)
        _text(svg, "tick", f"{100 * share:.0f}%", left - 6, y + 4, "end")
    shown = left - 20
    for t in ticks:
        x = at(t, 0)[0]
        if x - shown >= 24:
            _text(svg, "tick", f"{t:g}", x, bottom + 15, "middle")
            shown = x
    _text(svg, "axis", axis, (left + right) / 2, bottom + 33, "middle")
    ordered = sorted(enumerate(lines), key=lambda pair: -pair[1].points[-1][1])
    places = stacked([at(*line.points[-1])[1] for _, line in ordered], 13.0, bottom + 32)
    for (i, line), place in zip(ordered, places, strict=True):
        css = f"series s{i % SERIES}{' control' if line.control else ''}"
        ends = [at(*point) for point in line.points]
        _add(svg, "polyline", css, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in ends))
        x, y = ends[-1]
        _line(svg, css, x, at(1, line.low)[1], x, at(1, line.high)[1])
        _line(svg, "leader", x + 2, y, right + 8, place)
        _text(svg, f"label of-s{i % SERIES}", _clean(line.label, 17), right + 10, place + 4)
    return ET.tostring(svg, encoding="unicode")


def stacked(heights: Sequence[float], apart: float, lowest: float) -> list[float]:
    """Places of labels that belong at these heights, which grow downwards: in this order, at least ``apart`` from each other,
    none below ``lowest``, and otherwise as near to their own as possible from above."""
    places: list[float] = []
    for y in heights:
        places.append(max(y, places[-1] + apart) if places else y)
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], lowest if i + 1 == len(places) else places[i + 1] - apart)
    return places


def dots(names: Sequence[str], rows: Sequence[tuple[str, Sequence[Rate | None]]], axis: str) -> str:
    """One row for each concept, and in it one dot with its interval for each of ``names`` that was measured there."""
    left, right, top, step = 150.0, WIDTH - 14, 8.0 + 15 * ((len(names) + 1) // 2), 11.0
    tall = step * len(names) + 7
    bottom = top + tall * len(rows)
    said = "; ".join(
        f"{row}: " + ", ".join(f"{n} {100 * r[0]:.0f}%" for n, r in zip(names, found, strict=True) if r) for row, found in rows
    )
    svg = _svg(WIDTH, bottom + 40, f"{axis}, by concept. {said}")

    def at(share: float) -> float:
        return left + (right - left) * share

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _line(svg, "grid", at(share), top, at(share), bottom)
        if share in (0.0, 0.5, 1.0):
            _text(svg, "tick", f"{100 * share:.0f}%", at(share), bottom + 15, "end" if share == 1 else "middle")
    _text(svg, "axis", axis, (left + right) / 2, bottom + 33, "middle")
    for i, name in enumerate(names):
        x, y = left + (i % 2) * (right - left) / 2, 12.0 + 15 * (i // 2)
        _add(svg, "circle", f"of-s{i % SERIES}", cx=x + 4, cy=y - 4, r=4.0)
        _text(svg, "label", _clean(name, 20), x + 13, y)
    for j, (row, found) in enumerate(rows):
        above = top + tall * j
        _line(svg, "grid", 8, above, right, above)
        _text(svg, "label", _clean(row, 17), left - 8, above + tall / 2 + 4, "end")
        for i, r in enumerate(found):
            if r is not None:
                y = above + 3.5 + step * (i + 0.5)
                _line(svg, f"series s{i % SERIES}", at(r[1]), y, at(r[2]), y)
                _add(svg, "circle", f"of-s{i % SERIES}", cx=at(r[0]), cy=y, r=4.0)
    return ET.tostring(svg, encoding="unicode")


def interval_bar(value: float, low: float, high: float) -> str:
    """One rate on a 0..1 scale with its interval, small enough for a table cell."""
    svg = _svg(124, 14, f"{100 * value:.1f}%, interval {100 * low:.1f}% to {100 * high:.1f}%", "interval")

    def at(v: float) -> float:
        return 5 + 114 * v

    _line(svg, "grid", at(0), 7, at(1), 7)
    for v in (0.0, 0.5, 1.0):
        _line(svg, "grid", at(v), 3, at(v), 11)
    _line(svg, "bar patch", at(low), 7, at(high), 7)
    _add(svg, "circle", "mark patch", cx=at(value), cy=7.0, r=4.0)
    return ET.tostring(svg, encoding="unicode")


def _steps_axis(svg: ET.Element, left: float, right: float, y: float, first: int, last: int) -> None:
    _line(svg, "grid", left, y, right, y)
    for step, anchor, x in ((first, "start", left), (last, "end", right)):
        _text(svg, "tick", str(step), x, y + 15, anchor)
    _text(svg, "axis", "update", (left + right) / 2, y + 15, "middle")


def timeline(rows: Sequence[tuple[str, Sequence[int]]], first: int, last: int) -> str:
    """When each concept was chosen: one row per concept, one stroke per step in ``first`` .. ``last``."""
    left, right, height = 104.0, WIDTH - 44, 21.0
    bottom = 6 + height * len(rows)
    said = "; ".join(f"{name}: {len(steps)} times" for name, steps in rows)
    svg = _svg(WIDTH, bottom + 24, f"Steps at which each concept was chosen. {said}")
    for i, (name, steps) in enumerate(rows):
        y = 6 + height * i
        _line(svg, "grid", left, y + height / 2, right, y + height / 2)
        _text(svg, "label", _clean(name, 13), left - 8, y + 15, "end")
        _text(svg, "tick", f"{len(steps)}\N{MULTIPLICATION SIGN}", right + 8, y + 15)
        for step in steps:
            x = left + (right - left) * (step - first) / max(1, last - first)
            _line(svg, "stroke", x, y + 4, x, y + height - 4)
    _steps_axis(svg, left, right, bottom, first, last)
    return ET.tostring(svg, encoding="unicode")


def curve(values: Sequence[tuple[int, float]], name: str, first: int, last: int) -> str:
    """One quantity over the training steps, at least one value; from 0 (or its minimum, if that is negative) to its maximum."""
    left, right, top, bottom = 104.0, WIDTH - 44, 10.0, 130.0
    floor, ceiling = min(0.0, *(v for _, v in values)), max(v for _, v in values)
    span = ceiling - floor or 1.0
    said = f"first {values[0][1]:.3g}, last {values[-1][1]:.3g}, maximum {ceiling:.3g}"
    svg = _svg(WIDTH, bottom + 24, f"{name} over the training steps: {said}")
    for v in sorted({floor, floor + span / 2, floor + span}):
        y = bottom - (bottom - top) * (v - floor) / span
        _line(svg, "grid", left, y, right, y)
        _text(svg, "tick", f"{v:.3g}", left - 8, y + 4, "end")
    _text(svg, "axis", name, 4, (top + bottom) / 2 + 22)
    scale_x, scale_y = (right - left) / max(1, last - first), (bottom - top) / span
    path = " ".join(f"{left + scale_x * (s - first):.1f},{bottom - scale_y * (v - floor):.1f}" for s, v in values)
    _add(svg, "polyline", "curve", points=path)
    _steps_axis(svg, left, right, bottom, first, last)
    return ET.tostring(svg, encoding="unicode")
