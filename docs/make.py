"""Write docs/methods/*.md from the methods themselves: ``python docs/make.py``. A test keeps the pages up to date."""

from __future__ import annotations

import inspect
from pathlib import Path

from efface.config import describe
from efface.methods import METHODS, Method

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
    if published.exists():
        lines += ["", "## Numbers", "", published.read_text("utf-8").strip()]
    lines += ["", "Our numbers, beside the other methods: [results](../results.md).", ""]
    return "\n".join(lines)


def main() -> None:
    for name, cls in METHODS.items():
        (HERE / "methods" / f"{name}.md").write_text(page(cls), "utf-8")


if __name__ == "__main__":
    main()
