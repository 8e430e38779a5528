"""Ask the records of a bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..plans.database import ask, database, write_answer
from ..plans.records import Store


def query(folder: str | Path, sql: str, *, out: str | Path | None = None) -> list[dict[str, Any]]:
    """The answer of an SQL query on the records of a bench, as one mapping per row; needs DuckDB (extra ``query``).

    The tables are ``records`` (one row per image) and ``cells``; the views ``rates``, ``rates_by_target``, ``attack_cases``,
    ``attack_rates`` and ``attack_unions`` have numerators, denominators and 95 % intervals; ``wilson_low(k, n)`` and
    ``wilson_high(k, n)`` make more of these. ``out``: also write the answer to a .parquet, .csv or .json file.
    Raises BadOption for a query that DuckDB does not take, BadFile where there is no bench.

    >>> import efface
    >>> from pathlib import Path
    >>> plan = 'targets = ["rabbit"]\\n[entrants.block]\\ntrivial = "blocklist"\\n'
    >>> plan = 'profile = {steps = 3, guidance = 4.0, cases = {direct = 4, near = 4}}\\n' + plan
    >>> _ = Path("plan.toml").write_text(plan)
    >>> _ = efface.bench("plan.toml", out="bench")
    >>> found = efface.query("bench", "SELECT entrant, k, n FROM rates WHERE axis = 'near'")
    >>> [(row["entrant"], row["k"] == row["n"]) for row in found]  # a blocklist leaves prompts of other concepts as they are
    [('block', True), ('none', True)]

    """
    connection = database(Store(folder))
    try:
        if out is not None:
            write_answer(connection, sql, Path(out))
        return ask(connection, sql).records()
    finally:
        connection.close()
