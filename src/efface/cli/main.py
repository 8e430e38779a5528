"""The command ``efface`` itself: how errors end, what reaches the user, and how commands are grouped in its help."""

from __future__ import annotations

import inspect
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from ..errors import EffaceError, UsageError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
SECTIONS = {
    "Make an erasure": ("demo", "estimate", "erase", "import", "convert"),
    "Measure it": (
        "suite",
        "evaluate",
        "damage",
        "distance",
        "agreement",
        "attack",
        "survive",
        "study",
        "bench",
        "query",
        "leaderboard",
        "report",
        "certify",
    ),
    "Use it": ("sample", "export"),
    "Ship it": ("card", "push", "verify", "sign"),
    "Look things up": ("list", "env"),
}


AFTER_A_STOP = {
    **dict.fromkeys(("evaluate", "attack", "survive", "study", "bench", "demo"), "The same command goes on where it stopped."),
    "damage": "The same command starts again; the base model's images are kept.",
    "erase": "Where a checkpoint lies beside --out, the same command with --resume continues it; else it starts again.",
}
"""What Ctrl-C leaves of a command."""


class Once(click.Command):
    """A command that lets no option be given twice where only the last would count, and takes no number that is none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for p in given:
                if isinstance(p, click.Option) and not p.multiple and not p.is_flag and given.count(p) > 1:
                    raise click.UsageError(f"{p.opts[0]} is given twice; only one of the two could count.", ctx)
        rest = super().parse_args(ctx, args)
        for p in self.params:
            value = ctx.params.get(p.name or "")
            if isinstance(value, float) and not math.isfinite(value):
                raise click.BadParameter(f"{value} is no number.", ctx, p)
        return rest


class Efface(click.Group):
    """Turns errors of ours into one line and an exit code; everything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EffaceError as error:
            click.echo(f"efface: {error}", err=True)
            ctx.exit(2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt:
            click.echo(f"efface: stopped. {AFTER_A_STOP.get(str(ctx.invoked_subcommand), '')}".rstrip(), err=True)
            ctx.exit(1)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands by what they are for."""
        rest = [name for name in self.list_commands(ctx) if not any(name in names for names in SECTIONS.values())]
        for title, names in {**SECTIONS, "Other commands": tuple(rest)}.items():
            rows = [(n, c.get_short_help_str(limit=88)) for n in names if (c := self.get_command(ctx, n)) is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


@click.group(cls=Efface, context_settings=CONTEXT)
@click.version_option(None, "-V", "--version", package_name="efface", prog_name="efface")
@click.option("-q", "--quiet", is_flag=True, help="Print results and errors only: no bars, no announcements.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the libraries below print: notices, warnings, loading bars.")
@click.pass_context
def main(ctx: click.Context, quiet: bool, verbose: bool) -> None:
    """Erase concepts from text-to-image diffusion models, measure the erasure, and ship it as a small file.

    \b
    Start with:
      efface demo
      efface erase ap --model mini --target "fire engine" --out no-engine.safetensors

    \b
    Shell completion, for bash (zsh and fish likewise):
      eval "$(_EFFACE_COMPLETE=bash_source efface)"
    """
    ctx.obj = {"quiet": quiet}
    ctx.with_resource(warnings.catch_warnings())  # for as long as the command runs
    warnings.showwarning = _warn if not quiet else lambda *_, **__: None
    if not verbose:
        hush()


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in our code that it comes from."""
    click.echo(f"efface: note: {message}", err=True)


def hush() -> None:
    """Keep the notices of the libraries below from the user: import notices, loading bars, and their warnings."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for library in ("transformers", "diffusers", "torch", "huggingface_hub", "httpx", "bitsandbytes"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for library in ("transformers", "diffusers", "torch", "huggingface_hub", "importlib", "peft"):
        warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
    sys.meta_path.insert(0, _BarsOff())


class _BarsOff:
    """Turns the loading bars of transformers and diffusers off when they are imported, not before: that takes seconds."""

    def __init__(self) -> None:
        self.pending = {
            "transformers.modeling_utils": "transformers.utils",
            "diffusers.pipelines.pipeline_utils": "diffusers.utils",
        }

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in self.pending:
            utils = import_module(self.pending.pop(name))
            utils.logging.disable_progress_bar()
        if not self.pending:
            sys.meta_path.remove(self)


def command(name: str, *, examples: str = "", **facts: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of ``efface`` with executable examples at the end of its help."""

    def add(function: Callable[..., Any]) -> click.Command:
        made: click.Command = main.command(name, cls=Once, context_settings=CONTEXT, **facts)(function)
        made.help = with_examples(inspect.cleandoc(made.help or ""), examples)
        return made

    return add


def with_examples(text: str, examples: str) -> str:
    """A help text followed by example command lines, which click must not wrap."""
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    return f"{text}\n\n\b\nExamples:\n{lines}" if lines else text
