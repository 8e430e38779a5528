"""This machine: one worker in this process, or several in processes of their own."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from ...errors import BadFile
from ..cells import Cell, Schedule
from ..job import Job, Outcome
from . import DEATHS, OnDone, died


def in_this_process(schedule: Schedule, job: Job, on_done: OnDone) -> None:
    """One cell after the other."""
    while (cell := schedule.take()) is not None:
        outcome = job(cell)
        schedule.settle(cell.key, outcome.error)
        on_done(cell, outcome)


@dataclass
class Worker:
    """A process that runs the cells it is sent."""

    process: SpawnProcess
    pipe: Connection
    cell: Cell | None = None

    @staticmethod
    def start(job: Job) -> Worker:
        context = get_context("spawn")  # a fork would share the threads and locks of torch
        mine, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(job, theirs), daemon=True)
        process.start()
        theirs.close()
        return Worker(process, mine)

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


@dataclass(frozen=True)
class Processes:
    """Several processes on this machine. A worker that dies is replaced and its cell runs again."""

    workers: int

    def __call__(self, schedule: Schedule, job: Job, on_done: OnDone) -> None:
        """Raises BadFile, with what a worker said, where records cannot be written."""
        team: list[Worker] = []
        deaths: Counter[str] = Counter()
        try:
            while schedule.open:
                self._send(schedule, job, team)
                busy = [w for w in team if w.cell is not None]
                ready = wait([w.pipe for w in busy])
                for worker in [w for w in busy if w.pipe in ready]:
                    assert worker.cell is not None
                    cell, worker.cell = worker.cell, None
                    try:
                        answer = worker.pipe.recv()
                    except (EOFError, ConnectionError):
                        worker.process.join()
                        team.remove(worker)
                        deaths[cell.key] += 1
                        if deaths[cell.key] < DEATHS:
                            schedule.give_back(cell.key)
                            continue
                        answer = job.lost(cell, died(DEATHS, f"exit code {worker.process.exitcode}"))
                    if isinstance(answer, BadFile):
                        raise answer
                    schedule.settle(cell.key, answer.error)
                    on_done(cell, answer)
        finally:
            for worker in team:
                worker.stop()

    def _send(self, schedule: Schedule, job: Job, team: list[Worker]) -> None:
        idle = [w for w in team if w.cell is None]
        while (idle or len(team) < self.workers) and (cell := schedule.take()) is not None:
            if idle:
                worker = idle.pop()
            else:
                team.append(worker := Worker.start(job))
            worker.cell = cell
            with contextlib.suppress(BrokenPipeError, ConnectionError):  # it died while idle, which the next wait finds
                worker.pipe.send(cell)


def _serve(job: Job, pipe: Any) -> None:
    """The life of a worker: it ends when the other side is gone. Ctrl-C is for the process that started it, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _quiet()
    while True:
        try:
            cell = pipe.recv()
        except EOFError:
            return
        answer: Outcome | BadFile
        try:
            answer = job(cell)
        except BadFile as error:
            answer = error
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionError):
            return


def _quiet() -> None:
    """Workers print nothing: their notes would be mixed with those of the others."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
