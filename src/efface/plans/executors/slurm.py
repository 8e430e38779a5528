"""Scripts for Slurm: array jobs with one cell per task, and one script that submits them in order. Nothing is run here."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from ...io.files import write_text
from ..cells import Cell
from ..records import Store

ARRAY = 1000
"""Tasks of one array at most; Slurm's own limit is 1001 unless a cluster says otherwise."""


def stages(cells: Sequence[Cell], finished: Collection[str]) -> list[list[str]]:
    """The keys that are not finished, in stages: what a cell needs is in a stage before its own."""
    by_key = {c.key: c for c in cells if c.key not in finished}
    depth: dict[str, int] = {}

    def of(key: str) -> int:
        if key not in depth:
            depth[key] = max((1 + of(need) for need in by_key[key].needs if need in by_key), default=0)
        return depth[key]

    found: list[list[str]] = []
    for key in by_key:
        while len(found) <= of(key):
            found.append([])
        found[of(key)].append(key)
    return found


def write_scripts(
    store: Store, plan: Path, budget: float | None, cells: Sequence[Cell], finished: Collection[str], gpu: bool = False
) -> Path:
    """Write the scripts to the folder ``slurm`` of the bench and return the one that submits all."""
    folder = (store.folder / "slurm").resolve()
    for old in folder.glob("stage-*"):
        old.unlink()
    beside = Path(sys.executable).with_name("efface")
    program = str(beside) if beside.is_file() else "efface"
    given = [*(["--budget", f"{budget:g}s"] if budget is not None else []), "--cell"]
    call = shlex.join([program, "bench", str(plan.resolve()), "--out", str(store.folder.resolve()), *given])
    submit = [
        "#!/bin/sh",
        "# Submits every stage after the one before it. Options of your cluster go into SBATCH_ variables.",
        "set -e",
    ]
    before = ""
    for i, keys in enumerate(stages(cells, finished)):
        jobs = []
        for part in range(0, len(keys), ARRAY):
            name = f"stage-{i}-{part // ARRAY}"
            some = keys[part : part + ARRAY]
            write_text(folder / f"{name}.txt", "".join(f"{key}\n" for key in some))
            write_text(folder / f"{name}.sbatch", _array(name, folder, len(some), call, gpu))
            job = f"job_{i}_{part // ARRAY}"
            submit.append(f"{job}=$(sbatch --parsable {before}{shlex.quote(str(folder / f'{name}.sbatch'))})")
            jobs.append(f"${job}")
        # afterany: a cell that failed stops only the cells that need it, which say so.
        before = f"--dependency=afterany:{':'.join(jobs)} "
    script = folder / "submit.sh"
    write_text(script, "\n".join(submit) + "\n")
    return script


def _array(name: str, folder: Path, tasks: int, call: str, gpu: bool) -> str:
    keys = shlex.quote(str(folder / f"{name}.txt"))
    lines = [
        "#!/bin/sh",
        f"#SBATCH --job-name=efface-{name}",
        f"#SBATCH --array=0-{tasks - 1}",
        f"#SBATCH --output={folder}/{name}-%a.log",
        "#SBATCH --cpus-per-task=1",
        *(["#SBATCH --gres=gpu:1"] if gpu else []),
        f'key=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {keys})',
        f'exec {call} "$key"',
    ]
    return "\n".join(lines) + "\n"
