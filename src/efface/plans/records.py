"""What a bench keeps: one line of JSON per cell, appended and never changed.

DIR/records/WRITER.jsonl    every process that runs cells appends to a file of its own
DIR/records/NAME.jsonl.xz   the same, packed by xz to keep it for good
DIR/patches/KEY.safetensors the patch of an erasure, for the cells that need it
DIR/plans/NAME.json         which cells stand where in the tables of a plan

A line is ``{"record_version", "key", "kind", "status", "inputs", "result", "error", "run"}``. ``status`` is "finished" or
"failed"; a finished line counts for ever, a failed one until its cell is tried again. ``run`` holds what may differ between two
runs of the same cell: seconds, host, process, versions. Everything else is equal to the bit on the same kind of machine, whoever
ran it.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import BadFile
from ..io.files import write_text
from .cells import RECORD_VERSION

FINISHED, FAILED = "finished", "failed"


class Store:
    """The folder of a bench, as one process sees it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: Path | None = None

    def patch(self, key: str) -> Path:
        """Where the patch of an erasure lies."""
        return self.folder / "patches" / f"{key}.safetensors"

    def manifest(self, name: str) -> Path:
        """Where a plan of this name is kept."""
        return self.folder / "plans" / f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)}.json"

    # -- reading ---------------------------------------------------------------------------------------------------

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every line of every writer. Half a line at the end of a file, of a process that was killed inside a write, is none.

        Raises BadFile for any other line that is no record, and for a packed file that is damaged or cut off.
        """
        folder = self.folder / "records"
        for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.xz")]):
            text = unpacked(path)
            for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), 1):
                try:
                    record = json.loads(line)
                    version = record["record_version"]
                    record["key"], record["status"]
                except (ValueError, KeyError, TypeError) as error:
                    raise BadFile(
                        f"{path}, line {number}: no record of efface bench ({error!r}); restore or remove it."
                    ) from error
                if version != RECORD_VERSION:
                    raise BadFile(f"{path}, line {number} has record version {version}, this efface reads {RECORD_VERSION}.")
                yield record

    def records(self) -> dict[str, dict[str, Any]]:
        """Key -> its record: the first finished one, else the last failed one."""
        found: dict[str, dict[str, Any]] = {}
        for record in self.lines():
            kept = found.get(record["key"])
            if kept is None or kept["status"] == FAILED:
                found[record["key"]] = record
        return found

    def plans(self) -> list[dict[str, Any]]:
        """The plans that were started in this folder. Raises BadFile where there are none."""
        paths = sorted((self.folder / "plans").glob("*.json"))
        if not paths:
            raise BadFile(f"{self.folder} holds no bench; give the folder that `efface bench PLAN --out DIR` wrote.")
        try:
            return [json.loads(path.read_text("utf-8")) for path in paths]
        except ValueError as error:
            raise BadFile(f"a plan in {self.folder / 'plans'} is damaged: {error}") from error

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, record: Mapping[str, Any]) -> None:
        """One line, on the disk when this returns. Raises BadFile where it cannot be written, and leaves no half of it, and
        ValueError for numbers that are not finite."""
        line = (json.dumps({"record_version": RECORD_VERSION, **record}, allow_nan=False) + "\n").encode()
        try:
            if self._file is None:
                folder = self.folder / "records"
                folder.mkdir(parents=True, exist_ok=True)
                # A file of its own for every process: nothing is ever appended behind somebody's half line.
                self._file = folder / f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.jsonl"
                self._file.touch()
                _sync_folder(folder)
            with open(self._file, "r+b") as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self._file, end)
                    raise
        except OSError as error:
            raise BadFile(
                f"cannot write a record to {self.folder}: {error}. What was finished before is kept; free space and start again."
            ) from error

    def keep_plan(self, name: str, manifest: Mapping[str, Any]) -> None:
        write_text(self.manifest(name), json.dumps(manifest, indent=1, allow_nan=False) + "\n")


def unpacked(path: Path) -> bytes:
    """The lines of a file of records. Raises BadFile where a packed file is damaged."""
    packed = path.read_bytes()
    if path.suffix != ".xz":
        return packed
    try:
        return lzma.decompress(packed)
    except (lzma.LZMAError, EOFError) as error:
        raise BadFile(f"{path} cannot be unpacked ({error}); restore or remove it.") from error


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs of one cell must agree in: everything but ``run``."""
    return {k: v for k, v in record.items() if k != "run"}


def _sync_folder(folder: Path) -> None:
    """Make the names in the folder outlive a crash of the machine, where the system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
