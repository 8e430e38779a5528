"""``efface bench``."""

from __future__ import annotations

import re
from pathlib import Path

import click

from .main import command
from .options import json_option, out_option
from .output import Bars, emit, note

UNITS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400}


def seconds(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """``30min``, ``2h``, ``90s`` or ``1d``."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|sec|min|h|d)", text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is no time; write it as 90s, 30min, 2h or 1d.", ctx, param)
    return float(found[1]) * UNITS[found[2]]


@command(
    "bench",
    examples="""
    efface bench plan.toml --out runs/bench --dry-run
    efface bench plan.toml --out runs/bench --workers 2
    efface bench plan.toml --out runs/bench --budget 30min
    efface bench plan.toml --out /shared/bench --executor ray --ray-address 10.0.0.1:6379 --workers 16
    efface bench plan.toml --out /shared/bench --executor slurm-script
    """,
)
@click.argument("plan", type=click.Path(path_type=Path, dir_okay=False))
@out_option("Folder for records, patches and the plan.", folder=True)
@click.option(
    "--executor",
    default="local",
    show_default=True,
    help="local (processes on this machine), ray (a cluster), or slurm-script (write array scripts, run nothing).",
)
@click.option("--workers", type=int, default=1, show_default=True, help="How many cells run at a time.")
@click.option("--ray-address", default="", help="A running Ray cluster, as HOST:PORT; without it Ray starts one on this machine.")
@click.option(
    "--budget", callback=seconds, help="Time for the whole plan, such as 30min: images and attacked cases are scaled down."
)
@click.option("--dry-run", is_flag=True, help="Print the plan with its cost and do nothing.")
@click.option(
    "--cell", "only", multiple=True, metavar="KEY", help="Run this cell alone, as the tasks of an array job do; repeat."
)
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    plan: Path,
    out: Path,
    executor: str,
    workers: int,
    ray_address: str,
    budget: float | None,
    dry_run: bool,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run a PLAN of erasures, evaluations and attacks, given as a TOML file (docs/bench.md).

    What is finished in --out is never computed again: after a stop of any kind, the same command goes on. A cell that fails is
    recorded, does not stop the others, and is tried again by the next start. The exit code is 0 when all cells of the plan are
    finished and 1 when one failed.
    """
    from .. import verbs

    with Bars() as bars:

        def on_cell(done: int, total: int, told: str) -> None:
            bars.update("cells", done, total)

        found = verbs.bench(
            plan,
            out=out,
            executor=executor,
            workers=workers,
            ray_address=ray_address,
            budget=budget,
            dry_run=dry_run,
            only=only,
            on_cell=on_cell,
            note=note,
        )
    lines = [f"{found['finished']} of {found['cells']} cells of {found['plan']} are finished, {found['ran']} ran now."]
    if "script" in found:
        lines.append(f"Submit the rest with: sh {found['script']}")
    for key, error in found["failed"].items():
        lines.append(f"FAILED {key}: {error}")
    emit(as_json, {"out": str(out), **found}, "\n".join(lines))
    if found["failed"]:
        ctx.exit(1)
