"""Where cells run. An executor takes the cells of a schedule that may run, and settles each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..cells import Cell, Schedule
from ..job import Job, Outcome

LOCAL, RAY, SLURM = "local", "ray", "slurm-script"
NAMES = (LOCAL, RAY, SLURM)
DEATHS = 3
"""How often the process of a cell may die before the cell counts as failed."""

OnDone = Callable[[Cell, Outcome], None]


class Executor(Protocol):
    def __call__(self, schedule: Schedule, job: Job, on_done: OnDone) -> None:
        """Run the schedule until nothing of it is left."""


def died(times: int, how: str) -> str:
    return f"the process that ran it died {times} times ({how}); it may need more memory than there is."
