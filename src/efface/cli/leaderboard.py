"""``efface leaderboard``."""

from __future__ import annotations

from pathlib import Path

import click

from .main import command
from .options import FILE, FOLDER, json_option, out_option
from .output import emit, ends_in


@command(
    "leaderboard",
    examples="""
    efface leaderboard runs/bench --out leaderboard.html
    efface leaderboard runs/bench --out leaderboard.html --csv leaderboard.csv --latex leaderboard.tex
    """,
)
@click.argument("folder", type=FOLDER)
@out_option("HTML file to write.")
@click.option("--csv", "csv_out", type=FILE, default=None, help="Also write every number as a CSV file.")
@click.option("--latex", "latex_out", type=FILE, default=None, help="Also write the table for a paper.")
@json_option
def leaderboard(folder: Path, out: Path, csv_out: Path | None, latex_out: Path | None, as_json: bool) -> None:
    """Put everything in the FOLDER of a bench on one self-contained page: scores with intervals, attacks, cost, and who cannot be
    told from the best.
    """
    from .. import verbs

    ends_in(out, ".html", "a page")
    rows = verbs.leaderboard(folder, out, csv=csv_out, latex=latex_out)
    wide = max((len(r["entrant"]) for r in rows), default=7)
    lines = [f"{'entrant':<{wide}}  {'group':<6}{'mean':>6}"]
    for r in rows:
        mean = format(r["overall"], ".2f") if r["tie"] else ""
        lines.append(f"{r['entrant']:<{wide}}  {r['tie'] or '':<6}{mean:>6}".rstrip())
    emit(as_json, {"out": str(out), "rows": rows}, "\n".join([*lines, f"Wrote {out}"]))
