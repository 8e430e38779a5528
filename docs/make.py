"""Write docs/methods/*.md from the methods and docs/studies.md from the studies' results: ``python docs/make.py``. A test keeps
the pages up to date."""

from __future__ import annotations

import inspect
from pathlib import Path

from study_claims import studies_page

from efface.config import describe
from efface.methods import METHODS, ROWS, Method

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
    lines += ["## Options", "", "| option | default | values | meaning | source of the default |", "|---|---|---|---|---|"]
    for o in describe(cls):
        values = ", ".join(f"`{c}`" for c in o["choices"]) if o["choices"] else o["type"]
        lines.append(f"| `{o['name']}` | `{o['default']!r}` | {values} | {o['help']} | {o['source']} |")
    lines += ["", "## Presets", "", "| preset | options that differ from the defaults |", "|---|---|"]
    for name, settings in cls.presets.items():
        lines.append(f"| `{name}` | {', '.join(f'`{k}={v}`' for k, v in settings.items()) or 'none'} |")
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


def measured(cls: type[Method]) -> list[str]:
    """The rows of the method, and of its presets that go by a name of their own, in the first table of the results page."""
    _, _, text = (HERE / "results.md").read_text("utf-8").partition("<!-- methods -->\n")
    lines = [line for line in text.split("## ")[0].splitlines() if line.startswith("| ")]
    own = {cls.name, *(name for name, row in ROWS.items() if row is cls)}

    def mine(line: str) -> bool:
        label = line.split(" | ")[0].removeprefix("| ")
        return label in own or label.startswith(f"{cls.name}-")

    rows = [line for line in lines if mine(line)]
    return [lines[0], "|" + "---|" * (lines[0].count("|") - 1), *rows] if rows else []


def main() -> None:
    for name, cls in METHODS.items():
        (HERE / "methods" / f"{name}.md").write_text(page(cls), "utf-8")
    (HERE / "studies.md").write_text(studies_page(), "utf-8")


if __name__ == "__main__":
    main()
