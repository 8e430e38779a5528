"""Run one cell and record how it ended: the same in this process, in another one, on another machine."""

from __future__ import annotations

import os
import platform
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadFile, EffaceError
from ..versions import versions
from .cells import Cell
from .records import FAILED, FINISHED, Store

Perform = Callable[[Cell, Store], dict[str, Any]]
"""What a cell computes: its result, as plain data. What it says under "run", of how it was made, goes into that part of the
record."""


@dataclass(frozen=True)
class Outcome:
    """How a cell ended; ``error`` is empty where it finished."""

    key: str
    error: str = ""


@dataclass(frozen=True)
class Job:
    """Something that runs cells of one bench. It can be sent to another process."""

    folder: Path
    perform: Perform
    """A function at the top of a module, which every process can import."""

    def __call__(self, cell: Cell) -> Outcome:
        """Run the cell and append its record. An error of the cell is recorded and returned; Ctrl-C and a folder that cannot be
        written are raised."""
        store = _store(self.folder)
        if not store.folder.is_dir():
            raise BadFile(
                f"{socket.gethostname()} sees no folder {store.folder}: --out must be on a disk that all machines share."
            )
        start = time.perf_counter()
        facts = {"key": cell.key, "kind": cell.kind, "inputs": dict(cell.inputs)}
        try:
            result = self.perform(cell, store)
            run = {**run_facts(start), **result.pop("run", {})}
            store.append({**facts, "status": FINISHED, "result": result, "run": run})
        except BadFile as error:
            if not _writable(store.folder):
                raise BadFile(f"{error} The bench stops here; what was finished before is kept.") from error
            return self._failed(store, facts, error, start)
        except Exception as error:  # noqa: BLE001 - a plug-in may fail in any way, and the other cells must not suffer from it
            return self._failed(store, facts, error, start)
        return Outcome(cell.key)

    def _failed(self, store: Store, facts: Mapping[str, Any], error: Exception, start: float) -> Outcome:
        told = str(error) if isinstance(error, EffaceError) else f"{type(error).__name__}: {error}"
        run = {**run_facts(start), "traceback": "".join(traceback.format_exception(error))}
        store.append({**facts, "status": FAILED, "error": told, "run": run})
        return Outcome(facts["key"], told)

    def lost(self, cell: Cell, why: str) -> Outcome:
        """Record that the process of a cell died."""
        facts = {"key": cell.key, "kind": cell.kind, "inputs": dict(cell.inputs)}
        _store(self.folder).append({**facts, "status": FAILED, "error": why, "run": run_facts(time.perf_counter())})
        return Outcome(cell.key, why)


_STORES: dict[tuple[int, Path], Store] = {}


def _store(folder: Path) -> Store:
    """One store per process and folder, so that a process has one file of records."""
    return _STORES.setdefault((os.getpid(), folder), Store(folder))


def _writable(folder: Path) -> bool:
    probe = folder / f".probe-{os.getpid()}"
    try:
        probe.write_bytes(b"x" * 4096)
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True


def run_facts(start: float) -> dict[str, Any]:
    """The part of a record that tells who ran a cell and how long it took."""
    return {
        "seconds": round(time.perf_counter() - start, 3),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "machine": f"{platform.machine()} {platform.system()}",
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
    }
