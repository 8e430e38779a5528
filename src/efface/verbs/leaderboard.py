"""The leaderboard of a bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..reporting.leaderboard import ordered, write_leaderboard
from ..reporting.standings import COLUMNS


def leaderboard(
    folder: str | Path, out: str | Path, *, csv: str | Path | None = None, latex: str | Path | None = None
) -> list[dict[str, Any]]:
    """Write one self-contained page of everything in the folder of a bench, and return its rows, the best first.

    ``csv``, ``latex``: also write every number as a CSV file, and the table for a paper. A table per plan and model; see
    :mod:`efface.reporting.standings` for the scores. Raises BadFile where there is no bench. Cost: no UNet evaluations.

    >>> import efface
    >>> from pathlib import Path
    >>> plan = 'targets = ["rabbit"]\\n[entrants.block]\\ntrivial = "blocklist"\\n'
    >>> plan = 'profile = {steps = 3, guidance = 4.0, cases = {direct = 4, near = 4}}\\n' + plan
    >>> _ = Path("plan.toml").write_text(plan)
    >>> _ = efface.bench("plan.toml", out="bench")
    >>> rows = efface.leaderboard("bench", "leaderboard.html")
    >>> [(row["entrant"], row["near"]["k"] == row["near"]["n"]) for row in rows]
    [('none', True), ('block', True)]

    """
    found = write_leaderboard(
        Path(folder), Path(out), Path(csv) if csv is not None else None, Path(latex) if latex is not None else None
    )
    rows = []
    for t in found:
        for s in ordered(t):
            facts = {"plan": t.plan["name"], "model": t.model, "entrant": s.entrant, "kind": s.kind, "tie": s.tie or None}
            scores = {c: None if (x := s.scores[c]) is None else _plain(x) for c in COLUMNS}
            rows.append({**facts, **scores, "overall": s.overall, "flags": s.flags})
    return rows


def _plain(score: Any) -> dict[str, Any]:
    low, high = score.interval
    return {"k": score.k, "n": score.n, "value": score.value, "low": low, "high": high}
