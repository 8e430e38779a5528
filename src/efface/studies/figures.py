"""Figures of studies, drawn without a display. A colour has the same role in every figure."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..io.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#3b6fb6", "#d1782d", "#3f8f5b", "#9a5fb0", "#b5424a", "#6f6f6f", "#1f9ea8", "#c2a12b")


def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure, measured in inches, and its axes row by row. It is imported late, because
    plotting takes a second to load."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    axes = [fig.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def write_figure(fig: Figure, path: Path) -> None:
    """Write the figure as SVG with text as text. The same numbers give the same bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "efface", "font.family": "sans-serif"}):
        buffer = io.BytesIO()
        fig.savefig(buffer, format="svg", metadata={"Date": None})

    def write(temporary: Path) -> None:
        temporary.write_bytes(buffer.getvalue())

    atomic_write(path, write)


def dots(ax: Axes, rows: Sequence[tuple[str, Mapping[str, Any]]], colours: Sequence[str]) -> None:
    """Draw one estimate on each line, the first on top: value and interval, with small marks for
    the targets behind it."""
    for i, ((_, found), colour) in enumerate(zip(rows, colours, strict=True)):
        points = list(found.get("per_target", {}).values())
        ax.plot(points, [i] * len(points), "|", color=colour, alpha=0.45, markersize=7)
        if found["low"] is not None:
            ax.plot([found["low"], found["high"]], [i, i], color=colour, linewidth=2)
        if found["value"] is not None:
            ax.plot([found["value"]], [i], "o", color=colour, markersize=6)
    ax.axvline(0, color="#999999", linewidth=0.8)
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
