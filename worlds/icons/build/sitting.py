"""A sitting: the steps of the build side by side.

It is one command of so many seconds on a machine with a GPU and many cores. A step starts as soon as what it needs is
there, in a process of its own, and a training ends at its share of the time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from pathlib import Path

from .steps import STEPS, Step, run

PRELOADED = ["worlds.icons.build.unet", "miniature.train_clip", "miniature.train_detectors", "miniature.train_tokenizer"]
"""Imported once, before the processes are made."""
GRACE = 10.0
"""Seconds that a step may take beyond the end of the sitting."""


def sit(args: argparse.Namespace, seconds: float) -> bool:
    """Run all steps; whether all of them succeeded. What one prints is in the folder ``logs`` of the work folder."""
    begun = time.time()
    logs = args.work / "logs"
    logs.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    waiting, running, done, failed = list(STEPS), {}, set[str](), set[str]()
    while waiting or running:
        for step in list(waiting):
            if step.needs & failed:
                failed.add(step.name)
                waiting.remove(step)
            elif step.needs <= done:
                ends = begun + step.ends * seconds
                given = step, args, max(ends - time.time(), 1.0), ends, logs / f"{step.name}.txt"
                running[step.name] = context.Process(target=logged, args=given)
                running[step.name].start()
                waiting.remove(step)
        for name, process in list(running.items()):
            if process.is_alive() and time.time() - begun > seconds + GRACE:
                process.kill()
            if not process.is_alive():
                process.join()
                (failed if process.exitcode else done).add(name)
                said = (logs / f"{name}.txt").read_text("utf-8", "replace").strip().splitlines()[-1:]
                print(f"{time.time() - begun:.0f} s: {name} ended with {process.exitcode}: {''.join(said)[:160]}", flush=True)
                del running[name]
        time.sleep(0.05)
    if failed:
        print(f"failed: {', '.join(sorted(failed))}; {logs} says why.", flush=True)
    return not failed


def logged(step: Step, args: argparse.Namespace, seconds: float, until: float, log: Path) -> None:
    """``run`` in a process of its own, whose output goes to a file."""
    with log.open("w", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    run(step, args, seconds, until)
