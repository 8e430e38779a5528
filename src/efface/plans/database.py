"""The records of a bench as tables of DuckDB, with views for the rates that people ask for."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..equations.statistics import Z95
from ..errors import BadOption, MissingExtra
from ..io.files import atomic_write
from .records import Store
from .tables import CELL_COLUMNS, RECORD_COLUMNS, Bench, cell_rows, record_rows

RATE = """count(*) FILTER (WHERE {counts} AND {success}) AS k, count(*) FILTER (WHERE {counts}) AS n,
    k / nullif(n, 0) AS rate, wilson_low(k, n) AS low, wilson_high(k, n) AS high"""
IMAGES = RATE.format(counts="base_hit", success="success") + ", count(*) FILTER (WHERE base_hit AND NOT valid) AS invalid"
MACROS = f"""
CREATE MACRO wilson_centre(k, n) AS (k / n + {Z95 * Z95} / (2 * n)) / (1 + {Z95 * Z95} / n);
CREATE MACRO wilson_half(k, n) AS {Z95} * sqrt(k / n * (1 - k / n) / n + {Z95 * Z95} / (4 * n * n)) / (1 + {Z95 * Z95} / n);
CREATE MACRO wilson_low(k, n) AS
    CASE WHEN n = 0 OR k = 0 THEN 0.0 ELSE greatest(0.0, wilson_centre(k, n) - wilson_half(k, n)) END;
CREATE MACRO wilson_high(k, n) AS
    CASE WHEN n = 0 OR k = n THEN 1.0 ELSE least(1.0, wilson_centre(k, n) + wilson_half(k, n)) END;
"""
"""Wilson's 95 % interval of k successes in n cases, as :func:`efface.equations.statistics.wilson` computes it."""
VIEWS = {
    "rates": f"""
SELECT plan, model, entrant, strength, axis, {IMAGES}
FROM records WHERE kind = 'evaluation' GROUP BY ALL ORDER BY ALL""",
    "rates_by_target": f"""
SELECT plan, model, entrant, strength, targets, axis, {IMAGES}
FROM records WHERE kind = 'evaluation' GROUP BY ALL ORDER BY ALL""",
    "attack_cases": """
SELECT plan, model, entrant, targets, target, train_seed, attack, role, tier, case_id,
    bool_or(base_hit) AS counts, bool_or(success) AS broken, bool_or(valid) AS decided
FROM records WHERE kind = 'attack' GROUP BY ALL ORDER BY ALL""",
    "attack_rates": f"""
SELECT plan, model, entrant, attack, role, tier,
    {RATE.format(counts="(counts AND decided)", success="broken")},
    count(*) FILTER (WHERE counts AND NOT decided) AS undecided
FROM attack_cases GROUP BY ALL ORDER BY ALL""",
    "attack_unions": f"""
WITH plain AS (SELECT plan, model, entrant, target, train_seed, case_id FROM attack_cases WHERE role = 'baseline' AND counts),
tiers AS (SELECT DISTINCT plan, tier FROM attack_cases WHERE role IN ('attack', 'control', 'baseline')),
cases AS (
    SELECT p.plan, p.model, p.entrant, p.target, p.train_seed, p.case_id, t.tier,
        coalesce(bool_or(a.broken AND a.counts AND a.decided), false) AS broken,
        coalesce(bool_or(a.counts AND a.decided), false) AS decided
    FROM plain p JOIN tiers t USING (plan) LEFT JOIN attack_cases a
        ON (a.plan, a.model, a.entrant, a.target, a.train_seed, a.case_id)
            = (p.plan, p.model, p.entrant, p.target, p.train_seed, p.case_id)
        AND a.role IN ('attack', 'control', 'baseline') AND a.tier <= t.tier
    GROUP BY ALL)
SELECT plan, model, entrant, tier AS up_to_tier,
    {RATE.format(counts="decided", success="broken")}, count(*) FILTER (WHERE NOT decided) AS undecided
FROM cases GROUP BY ALL ORDER BY ALL""",
}
TOLD = {
    "records": "one row per image of an evaluation or an attack",
    "cells": "one row per cell, with its status, its cost and its error",
    "rates": "erased and valid, or preserved, per entrant and axis, over all targets and seeds",
    "rates_by_target": "the same per target",
    "attack_cases": "one row per attacked case: whether it counts, is broken, is decided",
    "attack_rates": "broken cases per entrant and attack",
    "attack_unions": "cases that the plain prompt, an attack or a control breaks, per entrant, up to each tier",
}


@dataclass(frozen=True)
class Answer:
    """Columns by name and rows of an SQL query."""

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def records(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def database(store: Store) -> Any:
    """A connection to a database in memory with the tables and views of :data:`TOLD`. Raises MissingExtra without DuckDB, and
    BadFile where there is no bench."""
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtra('efface query needs DuckDB: pip install "efface[query]".') from error
    bench = Bench.read(store)
    connection = duckdb.connect()
    _table(connection, "records", RECORD_COLUMNS, record_rows(bench))
    _table(connection, "cells", CELL_COLUMNS, cell_rows(bench))
    connection.execute(MACROS)
    for name, query in VIEWS.items():
        connection.execute(f"CREATE VIEW {name} AS {query}")
    return connection


def _table(connection: Any, name: str, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        typed = ", ".join(f"{column}: '{kind}'" for column, kind in columns.items())
        source = f"read_json('{file.name}', format = 'newline_delimited', columns = {{{typed}}})"
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM {source}")


def ask(connection: Any, sql: str) -> Answer:
    """The answer to one query. Raises BadOption with what DuckDB says about it."""
    import duckdb

    try:
        found = connection.execute(sql)
        return Answer([c[0] for c in found.description or ()], found.fetchall())
    except duckdb.Error as error:
        raise BadOption(f"the query cannot be answered: {error} The tables are {', '.join(TOLD)}.") from error


def write_answer(connection: Any, sql: str, path: Path) -> None:
    """The answer as a .parquet, .csv or .json file."""
    import duckdb

    kinds = {".parquet": "PARQUET", ".csv": "CSV, HEADER", ".json": "JSON, ARRAY true"}
    if path.suffix.lower() not in kinds:
        raise BadOption(f"--out {path} must end in .parquet, .csv or .json.")

    def write(temporary: Path) -> None:
        try:
            quoted = str(temporary).replace("'", "''")
            connection.execute(f"COPY ({sql.rstrip().rstrip(';')}) TO '{quoted}' (FORMAT {kinds[path.suffix.lower()]})")
        except duckdb.IOException as error:
            raise OSError(str(error)) from error
        except duckdb.Error as error:
            raise BadOption(f"the query cannot be answered: {error} The tables are {', '.join(TOLD)}.") from error

    atomic_write(path, write)
