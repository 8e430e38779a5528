"""Write the generated pages: ``python docs/make.py``. A test fails where one of them is out of date.

docs/methods/NAME.md    from the method's class, docs/numbers/NAME.md (published numbers) and docs/results.md (ours)
docs/attacks.md         from docs/attacks.intro.md and the attacks' classes
docs/guards.md          from docs/guards.intro.md and the guards' classes
docs/studies.md         from docs/numbers/studies.md, docs/study_claims.py and docs/studies/*/result.json
docs/rankings.md        its table of claims, from docs/study_claims.py and the results of both worlds in docs/studies
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study_claims import claims_table, studies_page

from efface.attacks import TIERS, Attack
from efface.guards import Guard
from efface.methods import Method
from efface.options import described
from efface.registry import ATTACKS, GUARDS, METHODS

HERE = Path(__file__).parent


def page(cls: type[Method]) -> str:
    """The page of one method: its docstring as written, its options and presets, published numbers, and our own."""
    lines = [
        f"# {cls.name}",
        "",
        f"{cls.summary[0].upper()}{cls.summary[1:]}. Source: {cls.paper}. Terms are in the [glossary](../glossary.md).",
        "",
        "```text",
        inspect.getdoc(cls) or "",
        "```",
        "",
    ]
    lines += ["## Options", "", *options(cls), "", "## Presets", "", *presets(cls.presets)]
    if "Official preset:" not in (inspect.getdoc(cls) or ""):
        lines += ["", "Official preset: none. No preset of this method carries the name of an official code."]
    published = HERE / "numbers" / f"{cls.name}.md"
    if published.exists():
        lines += ["", "## Published numbers", "", published.read_text("utf-8").strip()]
    lines += ["", "## Our numbers", ""]
    if tables := measured(cls):
        lines += [
            "On the miniature, with six targets and up to three training seeds: the share of cases erased and valid (direct, "
            "synonym, implicit), and the share preserved (near, trap, far).",
            "",
        ]
        for said, table in tables:
            lines += [f"{said}:", "", *table, ""]
    lines += ["All methods side by side, with intervals and costs, are in [results](../results.md).", ""]
    return "\n".join(lines)


def options(cls: type[Method] | type[Attack] | type[Guard]) -> list[str]:
    """Every option with default, meaning and source. An option that several choices share is one row."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for o in described(cls):
        values = ", ".join(f"`{c}`" for c in o["choices"]) if o["choices"] else o["type"]
        shared.setdefault((o["name"], repr(o["default"]), values, o["help"], o["source"]), []).append(o["needs"])
    lines = ["| option | default | values | meaning | source of the default |", "|---|---|---|---|---|"]
    for (name, default, values, meaning, source), needs in shared.items():
        only = "; only with " + " or ".join(f"`{n}`" for n in needs) if all(needs) else ""
        meaning = f"{meaning}{only}".replace("|", "\\|")
        lines.append(f"| `{name}` | `{default}` | {values} | {meaning} | {source} |")
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


TABLES = {"methods": "In the table of all methods", "robust": "In the table of methods that expect an attacker"}


def measured(cls: type[Method]) -> list[tuple[str, list[str]]]:
    """What was measured and the rows of the method and its variants, from the first table of each part of the results page."""
    found = []
    for name, said in TABLES.items():
        _, _, text = (HERE / "results.md").read_text("utf-8").partition(f"<!-- {name} -->\n")
        lines = text[text.index("| entrant") :].split("\n\n")[0].splitlines()
        rows = [line for line in lines[2:] if belongs(line.split(" | ")[0].removeprefix("| "), cls.name)]
        if rows and not (found and len(rows) == 1 and rows[0] in found[0][1]):
            found.append((said, [*lines[:2], *rows]))
    return found


def belongs(label: str, name: str) -> bool:
    """Whether a row is the method or a variant of it that has no page of its own."""
    return label == name or (label not in METHODS and label.startswith((f"{name}-", f"{name}, ")))


def rankings_page() -> str:
    """The page as it stands, with the table of claims made again."""
    before, _, rest = (HERE / "rankings.md").read_text("utf-8").partition("<!-- claims -->\n")
    _, _, after = rest.partition("<!-- /claims -->")
    return "\n".join([f"{before}<!-- claims -->", *claims_table(), f"<!-- /claims -->{after}"])


def main() -> None:
    for name, cls in METHODS.items():
        (HERE / "methods" / f"{name}.md").write_text(page(cls), "utf-8")
    (HERE / "attacks.md").write_text(attacks_page(), "utf-8")
    (HERE / "guards.md").write_text(guards_page(), "utf-8")
    (HERE / "studies.md").write_text(studies_page(), "utf-8")
    (HERE / "rankings.md").write_text(rankings_page(), "utf-8")


if __name__ == "__main__":
    main()
