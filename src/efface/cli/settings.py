"""Groups with one subcommand per method, attack or study, whose help is made from the class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from .main import CONTEXT, Once, main, with_examples


def settings_help(cls: Any) -> str:
    """Paper, options and presets of a method or an attack, from its class."""
    from ..options import described

    rows = []
    for o in described(cls):
        takes = " | ".join(o["choices"]) if o["choices"] else o["type"]
        only = f" Only with {o['needs']}." if o["needs"] else ""
        source = f" Source: {o['source']}." if o["source"] else ""
        rows.append(f"  {o['name']} = {o['default']!r}\n      {o['help']} ({takes}).{only}{source}")
    presets = "\n".join(
        f"  {p}: " + (", ".join(f"{k}={v}" for k, v in s.items()) or "the defaults") for p, s in cls.presets.items()
    )
    text = f"\b\nPaper: {cls.paper}\n\n\b\nOptions, given as --set name=value (default after the equals sign):\n" + "\n".join(
        rows
    )
    return text + f"\n\n\b\nPresets, given as --preset NAME (without it: mini on the miniature, else paper):\n{presets}"


class OneEach(click.Group):
    """One subcommand per entry of a table. ``table`` and ``describe`` are called when a name is looked at, so that importing the
    command line stays light."""

    def __init__(
        self,
        *,
        table: Callable[[], Mapping[str, Any]],
        find: Callable[[str], Any],
        describe: Callable[[Any], tuple[str, str]],
        body: click.Command,
        otherwise: Callable[[list[str]], str] = lambda args: "",
        **facts: Any,
    ) -> None:
        """``otherwise``: the name of the subcommand where the first argument is an option."""
        super().__init__(**facts)
        self.otherwise = otherwise
        self.table, self.find, self.describe, self.body = table, find, describe, body

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and not {"-h", "--help"} & set(args) and (name := self.otherwise(args)):
            args = [name, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        found = self.find(name)
        summary, text = self.describe(found)
        # Examples call a class in a file of the user's own by its path.
        text = text.replace(f"efface {self.name} {getattr(found, 'name', name)} ", f"efface {self.name} {name} ")
        return Once(
            name, callback=self.body.callback, params=self.body.params, help=text, short_help=summary, context_settings=CONTEXT
        )


def group(name: str, help: str, examples: str, **facts: Any) -> None:
    """Register such a group."""
    main.add_command(OneEach(name=name, help=with_examples(help, examples), context_settings=CONTEXT, **facts))
