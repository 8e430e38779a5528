"""The report of an evaluation."""

from __future__ import annotations

from pathlib import Path

from ..reporting import write_report


def report(folder: str | Path, out: str | Path) -> Path:
    """One self-contained HTML page from an evaluation folder."""
    return write_report(Path(folder), Path(out))
