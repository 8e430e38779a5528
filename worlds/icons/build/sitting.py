"""A sitting: the steps of the build side by side.

It is one command of so many seconds on a machine with a GPU and many cores. Every step has a process of its own, which starts to
work as soon as what it needs is there; a training ends at its share of the time.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from .steps import STEPS, Step, run

IMPORTED = ("worlds.icons.build.unet", "miniature.train_clip", "miniature.train_detectors", "miniature.train_tokenizer")
"""What every process imports before it is needed: that takes longer than some steps do."""
GRACE = 10.0
"""Seconds that a step may take beyond the end of the sitting."""


def sit(args: argparse.Namespace, seconds: float) -> bool:
    """Run all steps; whether all of them succeeded. What one prints is in the folder ``logs`` of the work folder."""
    begun = time.time()
    logs = args.work / "logs"
    logs.mkdir(exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # its processes are many, and each has threads of its own that draw batches
    # A fork must not inherit what an import did with CUDA. Without CUDA, forks of a process that has imported everything are
    # quicker, which counts where the cores are few.
    context: Any = multiprocessing.get_context("forkserver" if args.device == "cpu" else "spawn")
    if args.device == "cpu":
        context.set_forkserver_preload(list(IMPORTED))
    signals, processes = {step.name: context.Event() for step in STEPS}, dict[str, Any]()
    waiting, running = list(STEPS), list[Step]()
    done, failed = set[str](), set[str]()
    while waiting or running:
        going = done | {step.name for step in running}
        for step in list(waiting):
            if step.name not in processes and step.needs <= going:  # it is at hand when they are done
                given = step, args, begun + step.ends * seconds, signals[step.name], logs / f"{step.name}.txt"
                processes[step.name] = context.Process(target=stand_by, args=given)
                processes[step.name].start()
            if step.needs & failed:
                if step.name in processes:
                    processes[step.name].kill()
                failed.add(step.name)
                waiting.remove(step)
            elif step.needs <= done:
                signals[step.name].set()
                waiting.remove(step)
                running.append(step)
        for step in list(running):
            process = processes[step.name]
            if process.is_alive() and time.time() - begun > seconds + GRACE:
                process.kill()
            if not process.is_alive():
                process.join()
                (failed if process.exitcode else done).add(step.name)
                running.remove(step)
                said = (logs / f"{step.name}.txt").read_text("utf-8", "replace").strip().splitlines()[-1:]
                took = f"{time.time() - begun:.0f} s: {step.name} ended with {process.exitcode}"
                print(f"{took}: {''.join(said)[:160]}", flush=True)
        time.sleep(0.05)
    if failed:
        print(f"failed: {', '.join(sorted(failed))}; {logs} says why.", flush=True)
    return not failed


def stand_by(step: Step, args: argparse.Namespace, until: float, needed: Event, log: Path) -> None:
    """A process: import, wait until the step's needs are there, run it. Its output goes to a file."""
    with log.open("w", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    for module in IMPORTED:
        importlib.import_module(module)
    needed.wait()
    run(step, args, max(until - time.time(), 1.0), until)
