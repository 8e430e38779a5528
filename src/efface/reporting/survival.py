"""The page of ``efface survive``: one table, self-contained, from its record alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..io.files import write_text
from .plots import interval_bar

STATUS = {"survives": "supported", "comes back": "contradicted", "undecided": "open", "not testable": "unmeasured"}
"""What a condition came to -> how the page colours it."""


def write_survival(record: Mapping[str, Any], out: Path) -> None:
    """Write the page."""
    rows = [_row(r) for r in record["conditions"]]
    counts = {s: sum(r["status"] == s for r in record["conditions"]) for s in STATUS}
    told = ", ".join(f"{n} {status}" for status, n in counts.items() if n) or "no condition was tested"
    loader = PackageLoader("efface.reporting", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template("survival.html.j2").render(record=record, rows=rows, told=told)
    write_text(out, text.encode("utf-8", "replace").decode("utf-8"))


def _row(r: Mapping[str, Any]) -> dict[str, Any]:
    d = r["difference"]
    testable = r["status"] != "not testable"
    points = f"{100 * d['value']:+.0f} [{100 * d['low']:+.0f}, {100 * d['high']:+.0f}]" if testable else ""
    return {
        "told": r["told"],
        "name": r["name"],
        "status": r["status"],
        "css": STATUS[r["status"]],
        "why": r["why"],
        "base": rate(r["base"]),
        "plain": rate(r["plain"]),
        "under": rate(r["under"]),
        "bar": Markup(interval_bar(r["under"]["value"], r["under"]["low"], r["under"]["high"])) if testable else "",
        "points": points,
        "n": r["n"],
        "left_out": r["left_out"],
    }


def rate(r: Mapping[str, Any]) -> dict[str, str]:
    """A rate as text: the value, its interval, its counts."""
    if not r["n"]:
        return {"text": "none", "interval": "", "counts": "0/0", "invalid": ""}
    return {
        "text": f"{100 * r['value']:.0f}%",
        "interval": f"[{100 * r['low']:.0f}, {100 * r['high']:.0f}]",
        "counts": f"{r['k']}/{r['n']}",
        "invalid": f"{r['invalid']} invalid" if r["invalid"] else "",
    }
