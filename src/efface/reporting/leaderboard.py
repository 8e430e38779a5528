"""The leaderboard of a bench: one self-contained page, a CSV file and a LaTeX table, from records alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..equations.statistics import wilson
from ..io.files import write_text
from ..plans.records import Store
from ..plans.tables import Bench
from . import plots
from .hurt import worst_first
from .standings import COLUMNS, LEVEL, Score, Standing, Table, tables

MARKS = {"method": "patch", "patch": "patch", "guard": "guard", "gold": "gold", "trivial": "trivial"}
SHADES = 6
"""Steps of the heat map."""
MOST = 8
"""Lines of a plot."""
COMPARED = 4
"""Entrants in the plots of who is hurt: the best of the table."""
NAMED = 9
"""Entrants whose names have room in the plot of erasing against keeping; more of them are numbered as in the table."""


def write_leaderboard(folder: Path, out: Path, csv_out: Path | None = None, latex_out: Path | None = None) -> list[Table]:
    """Write the page, and where asked for the other two. Raises BadFile where the folder holds no bench."""
    found = tables(Bench.read(Store(folder)))
    loader = PackageLoader("efface.reporting", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template("leaderboard.html.j2").render(tables=[_view(t) for t in found], columns=COLUMNS, level=LEVEL)
    write_text(out, text.encode("utf-8", "replace").decode("utf-8"))
    if csv_out is not None:
        write_text(csv_out, as_csv(found))
    if latex_out is not None:
        write_text(latex_out, as_latex(found))
    return found


def ordered(table: Table) -> list[Standing]:
    """The best first, those without a mean after them, and the trivial entrants and the gold model last, in the plan's order."""
    ranked = [s for s in table.standings if s.kind not in ("gold", "trivial")]
    anchors = [s for s in table.standings if s.kind in ("gold", "trivial")]
    return [*sorted(ranked, key=lambda s: (s.overall is None, -(s.overall or 0.0), s.entrant)), *anchors]


def _view(t: Table) -> dict[str, Any]:
    """What the template shows of one table."""
    plan, rows = t.plan["plan"], ordered(t)
    attacks = list(dict.fromkeys(a for s in rows for a in s.attacks))
    facts = {a: next(s.attacks[a] for s in rows if a in s.attacks) for a in attacks}
    return {
        "title": f"{t.plan['name']} on {t.model}",
        "digest": t.plan["models"][t.model]["digest"][:12],
        "targets": "; ".join(" + ".join(target) for target in plan["targets"]),
        "seeds": ", ".join(map(str, plan["seeds"])),
        "profile": f"{plan['profile']['name']}, {plan['profile']['steps']} steps, guidance {plan['profile']['guidance']:g}",
        "cases": ", ".join(f"{axis} {n}" for axis, n in plan["profile"]["cases"].items()),
        "attack_cases": ", ".join(f"{a['label']} {a['cases']} x {a['budget']}" for a in plan["attacks"]),
        "measured": [c for c in COLUMNS if c in t.measured],
        "floor": f"{t.floor.n - t.floor.k} of {t.floor.n}" if t.floor else "",
        "rows": [_row(s, t.measured) for s in rows],
        "numbered": len(rows) > NAMED,
        "plot": _plot(rows, "robustness" if "robustness" in t.measured else "erasure"),
        "plotted": COLUMNS["robustness" if "robustness" in t.measured else "erasure"],
        "matched": [_matched(s) for s in rows if s.matched],
        "attacks": [(a, facts[a]["tier"], facts[a]["role"]) for a in attacks],
        "heat": [(s.entrant, [_heat(s.attacks.get(a)) for a in attacks]) for s in rows if s.attacks],
        "growths": [(s.entrant, *(_growth(s, trained) for trained in (False, True))) for s in rows if s.growths],
        "hurt": _hurt(rows),
        "many": _many(rows, plan),
        "open": t.open_cells,
        "failed": t.failed,
        "left_out": t.plan["left_out"],
        "versions": ", ".join(f"{k} {v}" for k, v in t.plan["versions"].items()),
    }


def digits(score: Score) -> str:
    """Two decimals, and none where the interval is wider than 0.1, because they would mean nothing."""
    low, high = score.interval
    return f"{score.value:.2f}" if high - low <= 0.1 else f"{score.value:.1f}"


def told(score: Score | None) -> dict[str, Any]:
    if score is None:
        return {"text": "", "interval": "", "counts": ""}
    low, high = score.interval
    return {"text": digits(score), "interval": f"[{low:.2f}, {high:.2f}]", "counts": f"{score.k}/{score.n}"}


def _row(s: Standing, measured: Sequence[str]) -> dict[str, Any]:
    valid, n = s.valid
    overall = ""
    if s.overall is not None and s.kind not in ("gold", "trivial"):
        low, high = s.overall_interval or (0.0, 1.0)
        overall = f"{s.overall:.2f} [{low:.2f}, {high:.2f}]"
    return {
        "entrant": s.entrant,
        "kind": s.kind,
        "best": s.tie == "a",
        "scores": [told(s.scores[c]) for c in COLUMNS if c in measured],
        "persistence": s.persistence,
        "minutes": "" if s.minutes is None else f"{s.minutes:.1f}",
        "evaluations": "" if s.evaluations is None else f"{s.evaluations:,.0f}",
        "per_image": "" if s.per_image is None else str(s.per_image),
        "megabytes": "" if s.parameters is None else f"{4 * s.parameters / 1e6:.1f}",
        "undone_by": s.undone_by,
        "valid": f"{valid}/{n}" if n else "",
        "overall": overall,
        "tie": s.tie,
        "flags": " ".join(s.flags),
    }


def _plot(rows: Sequence[Standing], column: str) -> Markup | None:
    points = []
    for i, s in enumerate(rows, 1):
        x, y = s.scores["near"], s.scores[column]
        if x is not None and y is not None:
            kind = "base" if s.entrant == "none" else MARKS[s.kind]
            points.append(
                plots.Point(s.entrant if len(rows) <= NAMED else str(i), kind, x.value, y.value, x.interval, y.interval)
            )
    label = "stays erased, attacked" if column == "robustness" else "target erased, image valid"
    return Markup(plots.tradeoff(points, label)) if points else None


def _growth(s: Standing, trained: bool) -> Markup | None:
    """The attacks that brought something back, at most MOST of them."""
    lines = []
    for label, points in s.growths.items():
        fact = s.attacks[label]
        if fact["trained"] == trained and points and (trained or points[-1][1]):
            end = wilson(*points[-1][1:])
            shares = [(x, k / n) for x, k, n in points]
            lines.append(plots.Line(label, shares, end.low, end.high, fact["role"] in ("control", "novel")))
    lines = sorted(lines, key=lambda line: -line.points[-1][1])[:MOST]
    return Markup(plots.growth(lines, "updates of fine-tuning" if trained else "images looked at, per case")) if lines else None


def _hurt(rows: Sequence[Standing]) -> list[tuple[str, Markup]]:
    """For each target, what the best entrants keep of each concept near it."""
    best = [s for s in rows if s.kind in ("method", "patch", "guard") and s.kept][:COMPARED]
    found = []
    for target in dict.fromkeys(t for s in best for t in s.kept):
        mine = [s.kept.get(target, {}) for s in best]
        lines = [(concept, [_dot(kept.get(concept)) for kept in mine]) for concept in worst_first(mine)]
        if lines:
            found.append((target, Markup(plots.dots([s.entrant for s in best], lines, "images kept"))))
    return found


def _dot(counts: tuple[int, int] | None) -> plots.Rate | None:
    if counts is None:
        return None
    r = wilson(*counts)
    return r.value, r.low, r.high


def _many(rows: Sequence[Standing], plan: dict[str, Any]) -> list[tuple[str, Markup]]:
    """Erasure and near over the number of targets that are erased at once, where a plan has more than one such number."""
    sizes = {"; ".join(group): len(group) for group in plan["targets"]}
    if len({*sizes.values()}) < 2:
        return []
    found = []
    for name in ("erasure", "near"):
        lines = []
        for s in [s for s in rows if s.kind in ("method", "patch", "guard")][:MOST]:
            by: dict[int, list[float]] = {}
            for target, seeds in s.trees[name].items():
                by.setdefault(sizes[target], []).extend(v for values in seeds.values() for v in values)
            if by:
                last = by[max(by)]
                end = wilson(int(sum(last)), len(last))
                lines.append(plots.Line(s.entrant, [(n, sum(v) / len(v)) for n, v in sorted(by.items())], end.low, end.high))
        if lines:
            found.append((COLUMNS[name], Markup(plots.growth(lines, "targets erased at once", "cases"))))
    return found


def _matched(s: Standing) -> dict[str, Any]:
    cells = []
    for name in ("near", "rest"):
        score = s.matched.get(name)
        bar = Markup(plots.interval_bar(score.value, *score.interval)) if score is not None else ""
        cells.append({**told(score), "bar": bar, "missing": "not reached" if name in s.matched else "not measured"})
    return {"entrant": s.entrant, "cells": cells}


def _heat(entry: dict[str, Any] | None) -> dict[str, Any]:
    if entry is None:
        return {"text": "not run", "interval": "", "counts": "", "excess": "", "shade": ""}
    r = entry["rate"]
    if not r["n"]:
        return {"text": "none counts", "interval": "", "counts": "0/0", "excess": "", "shade": ""}
    excess = "" if entry["excess"] is None else f"{100 * entry['excess']:+.0f} over control"
    return {
        "text": f"{100 * r['value']:.0f}%",
        "interval": f"[{100 * r['low']:.0f}, {100 * r['high']:.0f}]",
        "counts": f"{r['k']}/{r['n']}",
        "excess": excess,
        "shade": f"heat{min(SHADES - 1, int(SHADES * r['value']))}",
    }


# -- other formats -----------------------------------------------------------------------------------------------------

FIELDS = ("plan", "model", "entrant", "kind", "score", "value", "k", "n", "low", "high", "resampled_low", "resampled_high")
FACTS: tuple[str, ...] = ("minutes", "unet_evaluations", "evaluations_per_image", "parameters", "undone_by", "valid", "images")
FACTS += ("overall", "overall_low", "overall_high", "tie", "flags")


def as_csv(found: Sequence[Table]) -> str:
    """One row per entrant and score, and per entrant and attack, with everything that is known of the entrant in every row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIELDS, *FACTS])
    for t in found:
        for s in ordered(t):
            facts = [s.minutes, s.evaluations, s.per_image, s.parameters, s.undone_by, *s.valid]
            facts += [s.overall, *(s.overall_interval or ("", "")), s.tie, s.flags]
            head = [t.plan["name"], t.model, s.entrant, s.kind]
            rates = {c: s.scores[c] for c in COLUMNS}
            rates |= {f"{name} at {LEVEL:g} erased": v for name, v in s.matched.items()}
            for name, score in rates.items():
                if score is not None:
                    drawn = score.resampled or ("", "")
                    writer.writerow([*head, name, score.value, score.k, score.n, score.low, score.high, *drawn, *_plain(facts)])
            for name, a in s.attacks.items():
                r = a["rate"]
                writer.writerow(
                    [*head, f"attack: {name}", r["value"], r["k"], r["n"], r["low"], r["high"], "", "", *_plain(facts)]
                )
    return text.getvalue()


def _plain(values: Sequence[Any]) -> list[Any]:
    return ["" if v is None else v for v in values]


def as_latex(found: Sequence[Table]) -> str:
    """One ``tabular`` per table; the whole top group is bold, not the largest number."""
    parts = []
    for t in found:
        columns = [c for c in COLUMNS if c in t.measured]
        lines = [
            f"% {t.plan['name']} on {t.model}; 95 % intervals; {len(t.plan['plan']['targets'])} targets, "
            f"{len(t.plan['plan']['seeds'])} training seeds; made by efface leaderboard",
            rf"\begin{{tabular}}{{l{'l' * len(columns)}rl}}",
            r"\hline",
            " & ".join(["entrant", *columns, "evaluations", "tie"]) + r" \\",
            r"\hline",
        ]
        for s in ordered(t):
            name = _latex(s.entrant)
            cells = [rf"\textbf{{{name}}}" if s.tie == "a" else name]
            for c in columns:
                x = told(s.scores[c])
                cells.append(f"{x['text']} {x['interval']}".strip() or "--")
            cells += [f"{s.evaluations:.0f}" if s.evaluations is not None else "--", s.tie or "--"]
            lines.append(" & ".join(cells) + r" \\")
        parts.append("\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n")
    return "\n".join(parts)


def _latex(text: str) -> str:
    for sign in "\\{}_&%$#^~":
        text = text.replace(sign, {"\\": r"\textbackslash ", "^": r"\^{}", "~": r"\~{}"}.get(sign, f"\\{sign}"))
    return text
