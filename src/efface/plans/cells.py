"""Cells: the pieces of work of a plan, each with a key that is the hash of everything its result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RECORD_VERSION = 1
"""Of the records of a bench. It is part of every key: another format is another cell."""


def key_of(inputs: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON, 32 hexadecimal digits. Raises TypeError for what JSON cannot say."""
    text = json.dumps({"record_version": RECORD_VERSION, **inputs}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Cell:
    """One erasure, one evaluation of one entrant, or one attack on it."""

    kind: str
    """erase, evaluate or attack."""
    inputs: Mapping[str, Any]
    """Everything the result depends on, as plain data; the key is its hash."""
    how: Mapping[str, Any]
    """What the worker needs beside it and the result does not depend on: where the model lies, the spelling of options."""
    needs: tuple[str, ...] = ()
    """Keys of the cells that must be finished before."""
    evals: float = 0.0
    """UNet evaluations, counted before anything runs."""
    key: str = field(default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", key_of({"kind": self.kind, **self.inputs}))

    @property
    def told(self) -> str:
        """The cell in words."""
        return f"{self.kind} {self.how.get('told', '')}".rstrip()


@dataclass(frozen=True)
class Place:
    """Where a cell stands in a plan. One cell may stand in several places."""

    key: str
    kind: str
    entrant: str
    model: str
    targets: tuple[str, ...]
    target: str
    """The attacked target; of other cells the targets, joined."""
    seed: int
    strength: float = 1.0
    attack: str = ""
    role: str = ""


class Schedule:
    """Which cell may run next. Cells come out in the order of the plan, each after what it needs."""

    def __init__(self, cells: Iterable[Cell], finished: Iterable[str]) -> None:
        self.finished = set(finished)
        self.waiting = {c.key: c for c in cells if c.key not in self.finished}
        self.running: dict[str, Cell] = {}
        self.failed: dict[str, str] = {}
        """Key -> why it failed, or which cell it waits for in vain."""
        self.total = len(self.waiting)

    @property
    def done(self) -> int:
        return self.total - len(self.waiting) - len(self.running)

    @property
    def open(self) -> bool:
        """Whether something runs, or may still run."""
        return bool(self.running or self.waiting)

    def take(self) -> Cell | None:
        """The next cell that may run now; None where all that is left waits for running ones."""
        for key, cell in self.waiting.items():
            if all(need in self.finished for need in cell.needs):
                self.running[key] = self.waiting.pop(key)
                return cell
        return None

    def settle(self, key: str, error: str = "") -> None:
        """A running cell has finished or failed. What needs a failed one is given up."""
        cell = self.running.pop(key)
        if not error:
            self.finished.add(key)
            return
        self.failed[key] = error
        lost = [(key, cell)]
        while lost:
            gone, why = lost.pop()
            for other in [c for c in self.waiting.values() if gone in c.needs]:
                del self.waiting[other.key]
                self.failed[other.key] = f"not run, because it needs {why.told}, which failed"
                lost.append((other.key, other))

    def give_back(self, key: str) -> None:
        """A running cell was interrupted by something outside of it and is to run again, before the others."""
        self.waiting = {key: self.running.pop(key), **self.waiting}


def unique(cells: Sequence[Cell]) -> list[Cell]:
    """The cells without repetitions, what is needed first."""
    by_key: dict[str, Cell] = {}
    for cell in cells:
        by_key.setdefault(cell.key, cell)
    order: dict[str, Cell] = {}

    def put(cell: Cell) -> None:
        for need in cell.needs:
            if need in by_key:
                put(by_key[need])
        order.setdefault(cell.key, cell)

    for cell in by_key.values():
        put(cell)
    return list(order.values())
