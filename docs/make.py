"""Write docs/methods/*.md, docs/attacks.md and docs/guards.md from their classes and docs/studies.md from the studies' results:
``python docs/make.py``. A test keeps the pages up to date."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study_claims import studies_page

from efface.attacks import TIERS, Attack
from efface.guards import Guard
from efface.methods import Method
from efface.options import described
from efface.registry import ATTACKS, GUARDS, METHODS

HERE = Path(__file__).parent


def page(cls: type[Method]) -> str:
    """One page: the docstring as written, every option with default, meaning and source, presets, and the numbers beside the
    paper's from ``numbers/<name>.md`` where that was written by hand."""
    lines = [
        f"# {cls.name}",
        "",
        f"{cls.summary[0].upper()}{cls.summary[1:]}. {cls.paper}.",
        "",
        "```text",
        inspect.getdoc(cls) or "",
        "```",
        "",
    ]
    lines += ["## Options", "", *options(cls), "", "## Presets", "", *presets(cls.presets)]
    published = HERE / "numbers" / f"{cls.name}.md"
    lines += ["", "## Numbers", ""]
    if published.exists():
        lines += [published.read_text("utf-8").strip(), ""]
    ours = measured(cls)
    if ours:
        lines += [
            "Ours, on the miniature (share erased and valid, then shares preserved; six targets, up to three training seeds):",
            "",
            *ours,
            "",
        ]
    lines += ["All methods side by side, and what the columns mean: [results](../results.md).", ""]
    return "\n".join(lines)


def options(cls: type[Method] | type[Attack] | type[Guard]) -> list[str]:
    """Every option with default, meaning and source."""
    lines = ["| option | default | values | meaning | source of the default |", "|---|---|---|---|---|"]
    for o in described(cls):
        values = ", ".join(f"`{c}`" for c in o["choices"]) if o["choices"] else o["type"]
        only = f"; only with `{o['needs']}`" if o["needs"] else ""
        lines.append(f"| `{o['name']}` | `{o['default']!r}` | {values} | {o['help']}{only} | {o['source']} |")
    return lines


def presets(named: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| preset | options that differ from the defaults |", "|---|---|"]
    for name, settings in named.items():
        lines.append(f"| `{name}` | {', '.join(f'`{k}={v}`' for k, v in settings.items()) or 'none'} |")
    return lines


def section(cls: type[Attack] | type[Guard], facts: list[str]) -> list[str]:
    """One attack or guard of a page that has them all."""
    head = [f"## {cls.name}", "", f"{cls.summary[0].upper()}{cls.summary[1:]}. {' '.join(facts)}", ""]
    return [*head, "```text", inspect.getdoc(cls) or "", "```", "", *options(cls), ""]


def attacks_page() -> str:
    lines = [(HERE / "attacks.intro.md").read_text("utf-8").rstrip(), ""]
    lines += ["| tier | what the attacker has |", "|---|---|", *(f"| {tier} | {has} |" for tier, has in TIERS.items()), ""]
    for cls in ATTACKS.values():
        beside = f"Controls: {', '.join(f'`{c}`' for c in cls.controls)}." if cls.controls else ""
        lines += section(cls, [f"Tier {cls.tier}.", f"Source: {cls.paper}.", *([beside] if beside else [])])
        lines += [*presets(cls.presets), ""] if any(cls.presets.values()) else []
    return "\n".join(lines)


def guards_page() -> str:
    lines = [(HERE / "guards.intro.md").read_text("utf-8").rstrip(), ""]
    for cls in GUARDS.values():
        lines += section(cls, [f"{cls.branches} UNet evaluations per image and sampler step.", f"Source: {cls.paper}."])
    return "\n".join(lines)


def measured(cls: type[Method]) -> list[str]:
    """The rows of the method, and of its presets that go by a name of their own, in the first table of the results page."""
    _, _, text = (HERE / "results.md").read_text("utf-8").partition("<!-- methods -->\n")
    lines = [line for line in text.split("## ")[0].splitlines() if line.startswith("| ")]

    def mine(line: str) -> bool:
        label = line.split(" | ")[0].removeprefix("| ")
        return label == cls.name or label.startswith(f"{cls.name}-")

    rows = [line for line in lines if mine(line)]
    return [lines[0], "|" + "---|" * (lines[0].count("|") - 1), *rows] if rows else []


def main() -> None:
    for name, cls in METHODS.items():
        (HERE / "methods" / f"{name}.md").write_text(page(cls), "utf-8")
    (HERE / "attacks.md").write_text(attacks_page(), "utf-8")
    (HERE / "guards.md").write_text(guards_page(), "utf-8")
    (HERE / "studies.md").write_text(studies_page(), "utf-8")


if __name__ == "__main__":
    main()
