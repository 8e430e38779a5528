"""The engine of the bench: keys, records that outlive everything, schedules, workers that die. Cells do arithmetic here."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench_work import cells, perform
from hypothesis import given
from hypothesis import strategies as st

from efface.errors import BadFile
from efface.plans.cells import Cell, Schedule, unique
from efface.plans.executors import DEATHS
from efface.plans.executors.local import Processes, in_this_process
from efface.plans.executors.slurm import stages, write_scripts
from efface.plans.job import Job
from efface.plans.records import Store, comparable

Done = list[tuple[str, str]]


def run(folder: Path, made: list[Cell], workers: int = 1) -> Done:
    """Run what is not finished, as the verb does; (what ended, its error) in order."""
    store, done = Store(folder), Done()
    folder.mkdir(exist_ok=True)
    finished = {k for k, r in store.records().items() if r["status"] == "finished"}
    executor = in_this_process if workers == 1 else Processes(workers)
    executor(Schedule(made, finished), Job(folder, perform), lambda cell, outcome: done.append((cell.told, outcome.error)))
    return done


def results(folder: Path) -> dict[str, Any]:
    return {k: comparable(r) for k, r in Store(folder).records().items()}


# -- keys --------------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), min_size=1, max_size=5))
def test_a_key_is_the_hash_of_the_inputs_and_of_nothing_else(inputs: dict[str, Any]) -> None:
    one = Cell("erase", inputs, {"told": "one"})
    assert one.key == Cell("erase", dict(reversed(list(inputs.items()))), {}, ("x",), 5.0).key
    assert one.key != Cell("evaluate", inputs, {}).key
    for name in inputs:
        assert one.key != Cell("erase", {**inputs, name: "another value"}, {}).key or inputs[name] == "another value"


def test_cells_come_after_what_they_need_and_once() -> None:
    first, second = cells(1)
    assert unique([second, first, second]) == [first, second]


@given(st.data())
def test_a_schedule_never_hands_out_a_cell_before_what_it_needs(data: st.DataObject) -> None:
    made: list[Cell] = []
    for i in range(data.draw(st.integers(1, 12))):
        needs = data.draw(st.lists(st.sampled_from([c.key for c in made]), unique=True, max_size=3)) if made else []
        made.append(Cell("erase", {"number": i}, {}, tuple(needs)))
    broken = data.draw(st.sets(st.sampled_from([c.key for c in made])))
    schedule, running, ended, interrupted = Schedule(made, ()), list[Cell](), set[str](), set[str]()
    while schedule.open:
        while (cell := schedule.take()) is not None:
            assert all(need in ended - broken for need in cell.needs)
            running.append(cell)
        cell = running.pop(data.draw(st.integers(0, len(running) - 1)))
        if cell.key not in interrupted and data.draw(st.booleans()):
            interrupted.add(cell.key)
            schedule.give_back(cell.key)
        else:
            schedule.settle(cell.key, "no" if cell.key in broken else "")
            ended.add(cell.key)
    by_key = {c.key: c for c in made}

    def doomed(key: str) -> bool:
        return key in broken or any(doomed(need) for need in by_key[key].needs)

    assert set(schedule.failed) == {k for k in by_key if doomed(k)}
    assert schedule.finished == {k for k in by_key if not doomed(k)}


# -- records -----------------------------------------------------------------------------------------------------------


def test_half_a_line_is_none_and_a_broken_line_is_an_error(tmp_path: Path) -> None:
    run(tmp_path, cells(2))
    (path,) = (tmp_path / "records").iterdir()
    whole = path.read_bytes()
    for cut in range(0, len(whole), 37):
        path.write_bytes(whole[:cut])
        assert len(Store(tmp_path).records()) == whole[:cut].count(b"\n")
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(BadFile, match="line 1"):
        Store(tmp_path).records()


def test_a_full_disk_leaves_no_half_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up while the third cell is recorded: in a way that no probe file can be written either."""
    made, real, calls = cells(3), os.fsync, list[int]()

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 3:  # one for the folder, two records
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadFile, match="free space and start again"):
        run(tmp_path, made)
    monkeypatch.setattr(os, "fsync", real)
    assert len(Store(tmp_path).records()) == 2
    assert all(path.read_bytes().endswith(b"\n") for path in (tmp_path / "records").iterdir() if path.stat().st_size)
    again = run(tmp_path, made)
    assert len(again) == 4, "the two finished cells were not computed again"
    assert len(results(tmp_path)) == 6


def test_a_write_that_stops_half_way_is_taken_back(tmp_path: Path) -> None:
    """The system takes a part of a line and refuses the rest, as a full disk does: here by a limit on the size of files."""
    made = cells(2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(BadFile, match="free space and start again"):
            run(tmp_path, made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (path,) = (tmp_path / "records").iterdir()
    assert path.read_bytes().endswith(b"\n")
    kept = results(tmp_path)
    assert len(kept) == 2
    run(tmp_path, made)
    assert kept.items() <= results(tmp_path).items()
    assert len(results(tmp_path)) == 4


def test_a_number_that_is_not_finite_is_a_failure_and_no_record(tmp_path: Path) -> None:
    done = run(tmp_path, cells(2, fault="nan"))
    assert [error for _, error in done if error] == ["ValueError: Out of range float values are not JSON compliant"]
    assert "NaN" not in "".join(p.read_text() for p in (tmp_path / "records").iterdir())


# -- failing and dying -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_cell_stops_no_other_and_is_tried_again(tmp_path: Path, workers: int) -> None:
    made = cells(3, fault="raises once")
    done = run(tmp_path, made, workers)
    assert [(t, e) for t, e in done if e] == [("erase number 1", "ZeroDivisionError: of the test")]
    assert len(done) == 5, "and the cell that needs it was not run"
    record = results(tmp_path)[made[2].key]
    assert (record["status"], record["error"]) == ("failed", "ZeroDivisionError: of the test")
    assert sorted(run(tmp_path, made, workers)) == [("erase number 1", ""), ("evaluate number 1", "")]
    assert {r["status"] for r in results(tmp_path).values()} == {"finished"}


def test_a_worker_that_dies_is_replaced_and_its_cell_runs_again(tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    run(alone, cells(4))
    run(killed, cells(4, fault="dies once"), 2)
    assert results(alone) == results(killed)


def test_a_cell_that_kills_its_workers_is_recorded_as_failed(tmp_path: Path) -> None:
    done = run(tmp_path, cells(2, fault="dies"), 2)
    ((_, error),) = [(t, e) for t, e in done if e]
    assert f"died {DEATHS} times (exit code -9)" in error
    assert len(done) == 3


def test_ctrl_c_ends_the_workers_and_keeps_what_is_finished(tmp_path: Path) -> None:
    def stop(cell: Cell, outcome: Any) -> None:
        raise KeyboardInterrupt

    tmp_path.joinpath("out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        Processes(2)(Schedule(cells(4, sleep=0.2), ()), Job(tmp_path / "out", perform), stop)
    kept = results(tmp_path / "out")
    assert kept
    run(tmp_path / "out", cells(4))
    assert kept.items() <= results(tmp_path / "out").items()


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_bench_engine import run
from bench_work import cells
run(Path({out!r}), cells(12, sleep=0.02), {workers})
"""


def killed_at(out: Path, workers: int, seconds: float) -> None:
    """Start a bench as another process, and kill it with what it started."""
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(out), workers=workers)
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_kill_9_loses_no_finished_record(tmp_path: Path) -> None:
    """Until the first records are there, and once more; tests/test_bench.py does the same to the command at 20 points."""
    out, expected = tmp_path / "out", tmp_path / "expected"
    run(expected, cells(12))
    out.mkdir()
    kept: dict[str, Any] = {}
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(out), workers=1)
    for more in (1, 7):
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        while len(Store(out).records()) < len(kept) + more:
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = results(out)
        assert kept.items() <= now.items()
        kept = now
    assert len(kept) < 24, "it was killed in the middle"
    run(out, cells(12))
    assert results(out) == results(expected)


@pytest.mark.slow
def test_kill_9_at_20_random_points_with_two_workers(tmp_path: Path) -> None:
    out, rng, kept = tmp_path / "out", random.Random(0), dict[str, Any]()
    out.mkdir()
    for _ in range(20):
        killed_at(out, 2, rng.uniform(0.5, 6.0))
        now = results(out)
        assert kept.items() <= now.items()
        kept = now
    run(out, cells(12), 2)
    run(tmp_path / "expected", cells(12))
    assert results(out) == results(tmp_path / "expected")


# -- Slurm -------------------------------------------------------------------------------------------------------------

SBATCH = """#!/bin/sh
for last; do :; done
echo "$@" >> {log}
tasks=$(sed -n 's/^#SBATCH --array=0-//p' "$last")
for i in $(seq 0 "$tasks"); do SLURM_ARRAY_TASK_ID=$i sh "$last" || true; done > {log}.$$ 2>&1
echo 17
"""


def fake_sbatch(folder: Path) -> tuple[dict[str, str], Path]:
    """A Slurm that runs every task at once, on this machine: the environment with it, and what it was asked."""
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH.format(log=folder / "asked"))
    (folder / "sbatch").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}, folder / "asked"


def test_array_scripts_have_one_cell_per_task_in_stages(tmp_path: Path) -> None:
    made = cells(3)
    finished = {made[0].key}
    assert stages(made, finished) == [[made[1].key, made[2].key, made[4].key], [made[3].key, made[5].key]]
    (tmp_path / "efface").write_text('#!/bin/sh\necho "$@" >> ' + str(tmp_path / "called") + "\n")
    script = write_scripts(Store(tmp_path / "out"), tmp_path / "plan.toml", 60.0, made, finished)
    for path in script.parent.glob("*.sbatch"):  # in place of the installed command
        path.write_text(path.read_text().replace(str(Path(sys.executable).with_name("efface")), f"sh {tmp_path / 'efface'}"))
    environment, asked = fake_sbatch(tmp_path / "bin")
    subprocess.run(["sh", str(script)], env=environment, check=True)
    called = [line.split() for line in (tmp_path / "called").read_text().splitlines()]
    assert [line[-1] for line in called] == [key for stage in stages(made, finished) for key in stage]
    assert called[0][:-1] == ["bench", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out"), "--budget", "60s", "--cell"]
    assert "--dependency=afterany:17" in asked.read_text().splitlines()[1]


def test_records_say_who_ran_a_cell_apart_from_what_it_gave(tmp_path: Path) -> None:
    run(tmp_path, cells(1))
    (record, _) = Store(tmp_path).records().values()
    assert record["run"]["process"] == os.getpid()
    assert set(record) == {"record_version", "key", "kind", "inputs", "status", "result", "run"}
    assert json.dumps(comparable(record)).count(str(os.getpid())) == 0
