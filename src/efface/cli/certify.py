"""``efface certify``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from .main import command
from .options import json_option
from .output import emit

REFUSED = 3
"""Exit code where a policy is not kept."""


@command(
    "certify",
    examples="""
    efface certify runs/no-engine --policy weights --attack runs/all
    """,
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--policy", required=True, help="api (a model behind an API), weights (published weights), or a TOML file.")
@click.option(
    "--attack",
    "attacks",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Folder of an attack on what was evaluated; repeat.",
)
@click.option("--entrant", default="", help="Another system of the evaluation, such as gold. Default: its patch or guard.")
@json_option
@click.pass_context
def certify(ctx: click.Context, folder: Path, policy: str, attacks: tuple[Path, ...], entrant: str, as_json: bool) -> None:
    """Say whether an evaluation FOLDER, and attacks on the same system, keep a policy.

    Every demand is judged by the bound of a 95 % interval. The exit code is 0 when all demands are passed and 3 when one is
    failed, undecided or not tested.
    """
    from .. import verbs

    found = verbs.certify(folder, policy=policy, attacks=attacks, entrant=entrant)
    wide = max(len(f.demand) for f in found.findings)
    lines = [f"{f.status.upper():<11} {f.demand:<{wide}}  {f.text}" for f in found.findings]
    lines += ["", f"Not tested: {'; '.join(found.untested)}."]
    counts = {s: sum(f.status == s for f in found.findings) for s in ("passed", "failed", "undecided", "not tested")}
    told = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    decision = "The policy is kept" if found.passed else "The policy is NOT kept"
    lines.append(f"{decision}: {found.policy} ({found.description}); {told}.")
    emit(as_json, {**dataclasses.asdict(found), "passed": found.passed}, "\n".join(lines))
    if not found.passed:
        ctx.exit(REFUSED)
