"""A Ray cluster: one that runs already, or one that Ray starts on this machine.

Every machine of the cluster must see the folder of the bench under the same path, and have the same efface installed. Workers
write their own records, so that nothing is lost when the process that started them is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BadFile, BadOption, MissingExtra
from ..cells import Cell, Schedule
from ..job import Job, Outcome
from . import DEATHS, OnDone, died

STORE_BYTES = 100 * 2**20
"""Memory for what Ray's processes hand to each other: cells and outcomes, a few kilobytes each. Ray's own default is 30 % of the
machine's memory."""


def ray_module(running: bool) -> Any:
    """Ray, set up for a cluster that runs already or for one of its own. Raises MissingExtra where Ray is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a bench tells nobody that it runs
    if running and (Path.home() / ".ray" / "auth_token").is_file():
        # `ray start` protects a cluster by the token in this file, and a program that joins must say that it has one.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError as error:
        raise MissingExtra('--executor ray needs Ray: pip install "efface[bench]".') from error
    return ray


@dataclass(frozen=True)
class Cluster:
    """Cells as Ray tasks, ``workers`` at a time. The task of a worker that dies is run again by Ray."""

    workers: int
    address: str = ""
    gpus: int = 0
    """GPUs of each task."""

    def __call__(self, schedule: Schedule, job: Job, on_done: OnDone) -> None:
        """Raises BadOption for an address at which no cluster is, BadFile where records cannot be written."""
        ray = ray_module(bool(self.address))
        local: dict[str, Any] = {"num_cpus": self.workers, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        try:
            ray.init(
                address=self.address or "local",
                log_to_driver=False,
                logging_level="ERROR",
                **({} if self.address else local),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            remedy = (
                "Where the cluster is protected by a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH as Ray's pages say."
            )
            told = str(error).splitlines()[0]
            raise BadOption(f"no Ray cluster could be joined at {self.address or 'this machine'}: {told}. {remedy}") from error
        try:
            self._run(ray, schedule, job, on_done)
        finally:
            ray.shutdown()

    def _run(self, ray: Any, schedule: Schedule, job: Job, on_done: OnDone) -> None:
        task = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=DEATHS - 1)(_task)
        running: dict[Any, Cell] = {}
        while schedule.open:
            while len(running) < self.workers and (cell := schedule.take()) is not None:
                running[task.remote(job, cell)] = cell
            (ref, *_), _ = ray.wait(list(running), num_returns=1)
            cell = running.pop(ref)
            try:
                outcome: Outcome = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, BadFile):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                outcome = job.lost(cell, died(DEATHS, type(error).__name__))
            schedule.settle(cell.key, outcome.error)
            on_done(cell, outcome)


def _task(job: Job, cell: Cell) -> Outcome:
    return job(cell)
