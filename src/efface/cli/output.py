"""What commands print: results on standard output, announcements and bars on standard error."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ..errors import BadOption
from ..io.files import check_writable


def emit(as_json: bool, data: dict[str, Any], text: str) -> None:
    """The result of a command."""
    click.echo(json.dumps(data) if as_json else text)


def quiet() -> bool:
    """Whether the user asked for results and errors only."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx is not None and (ctx.find_root().obj or {}).get("quiet"))


def note(text: str) -> None:
    """Something to know before or during a run."""
    if not quiet():
        click.echo(text, err=True)


def command_line() -> str:
    """The command as it was typed, for records."""
    return shlex.join(["efface", *sys.argv[1:]])


def free(out: Path, force: bool) -> None:
    """Raises BadOption where a safetensors file must not be written."""
    if out.suffix != ".safetensors":
        raise BadOption(f"--out {out} must end in .safetensors: that is what is written.")
    if out.exists() and not force:
        raise BadOption(f"--out {out} exists; it can have cost hours, so it is only replaced with --force.")
    check_writable(out)


def ends_in(out: Path, suffix: str, what: str) -> None:
    """Raises BadOption for a file whose name promises another format than is written, BadFile for a place that cannot be
    written."""
    if out.suffix.lower() != suffix:
        raise BadOption(f"--out {out} must end in {suffix}: {what} is what is written.")
    check_writable(out)


def written(out: Path, patch: Any) -> dict[str, Any]:
    """What --json says of a patch file."""
    return {"out": str(out), "bytes": out.stat().st_size, **{k: v for k, v in patch.json().items() if k != "log"}}


def rate(r: dict[str, Any]) -> tuple[str, str, str]:
    """A rate in per cent, its interval, and its counts, as text."""
    value = f"{100 * r['value']:.1f}%" if r["value"] is not None else "n/a"
    return value, f"[{100 * r['low']:.1f}, {100 * r['high']:.1f}]", f"{r['k']}/{r['n']}"


class Bars:
    """One bar after the other on a terminal, each with its own name; nothing elsewhere."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.what = ""

    def __enter__(self) -> Bars:
        return self

    def update(self, what: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if what != self.what:
            self.__exit__()
            self.bar = tqdm(total=total, desc=what, file=sys.stderr, mininterval=1.0, disable=True if quiet() else None)
            self.what = what
        self.bar.update(max(0, done - self.bar.n))

    def images(self, done: int, total: int) -> None:
        self.update("images", done, total)

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class TrainingBar:
    """A bar with the loss terms by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: Any = None

    def __enter__(self) -> TrainingBar:
        return self

    def step(self, step: Any, total: int) -> None:
        from tqdm import tqdm

        if self.bar is None:
            off = True if quiet() else None
            self.bar = tqdm(
                total=total, initial=step.index, desc=self.name, unit="step", file=sys.stderr, mininterval=1.0, disable=off
            )
        self.bar.set_postfix({k: f"{v:.4f}" for k, v in step.terms.items()}, refresh=False)
        self.bar.update(1)
        if step.index + 1 == total:
            self.bar.close()

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()
