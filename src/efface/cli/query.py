"""``efface query``."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import click

from .main import command
from .options import FILE, FOLDER

FORMATS = ("table", "csv", "json")


@command(
    "query",
    examples="""
    efface query runs/bench
    efface query runs/bench "SELECT entrant, axis, k, n, rate, low, high FROM rates"
    efface query runs/bench "SELECT entrant, attack, k, n, low, high FROM attack_rates WHERE role = 'attack'" --format csv
    efface query runs/bench "SELECT * FROM records" --out records.parquet
    """,
)
@click.argument("folder", type=FOLDER)
@click.argument("sql", required=False)
@click.option("--format", "shape", type=click.Choice(FORMATS), default="table", show_default=True, help="How rows are printed.")
@click.option("--out", type=FILE, default=None, help="Write the rows to this .parquet, .csv or .json file and print none.")
def query(folder: Path, sql: str | None, shape: str, out: Path | None) -> None:
    """Ask the records of a bench in FOLDER with one SQL query, by DuckDB. Without a query, the tables and columns are listed.

    A rate is k of n cases with Wilson's 95 % interval from low to high. Only cases count in which the unmodified model shows the
    concept.
    """
    from ..plans.database import TOLD, ask, database, write_answer
    from ..plans.records import Store

    connection = database(Store(folder))
    if sql is None:
        for name, told in TOLD.items():
            columns = ", ".join(ask(connection, f"SELECT * FROM {name} LIMIT 0").columns)
            click.echo(f"{name}: {told}\n    {columns}")
        return
    if out is not None:
        write_answer(connection, sql, out)
        click.echo(f"Wrote {out}")
        return
    answer = ask(connection, sql)
    if shape == "json":
        click.echo(json.dumps(answer.records(), default=str))
    elif shape == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([answer.columns, *answer.rows])
        click.echo(text.getvalue(), nl=False)
    else:
        click.echo(table(answer.columns, answer.rows))


def table(columns: list[str], rows: list[tuple[Any, ...]]) -> str:
    """Rows as text in columns; numbers to the right, fractions to three digits."""
    cells = [[f"{v:.3f}" if isinstance(v, float) else "" if v is None else str(v) for v in row] for row in rows]
    wide = [max(len(name), *(len(row[i]) for row in cells), 1) for i, name in enumerate(columns)]
    right = [all(isinstance(v, int | float | None) for v in column) for column in zip(*rows, strict=True)] or [False] * len(wide)

    def line(values: list[str]) -> str:
        return "  ".join(v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, wide, right, strict=True)).rstrip()

    return "\n".join([line(columns), *(line(row) for row in cells), f"({len(rows)} row{'s' * (len(rows) != 1)})"])
