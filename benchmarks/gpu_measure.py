"""Timing, peak memory and the file of results of a run on one GPU; see gpu.py."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from efface.concepts.request import EraseRequest
from efface.methods import Method
from efface.models.base import DiffusionModel
from efface.training.loop import Run, Step
from efface.versions import versions

GIB = 2**30


class Overrun(BaseException):
    """A section is past its deadline. No Exception, so that nothing takes it for a failed measurement."""


class Enough(Exception):
    """As many updates as were asked for have been measured."""


@dataclass
class Bench:
    """Measures on one device and keeps what was measured in ``out``/results.json, rewritten after every section."""

    out: Path
    device: str
    smoke: bool
    started: float = field(default_factory=time.perf_counter)
    results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = self.out / "results.json"
        self.results = json.loads(kept.read_text("utf-8")) if kept.exists() else {**machine(self), "sections": {}, "rows": []}

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "results.json").write_text(json.dumps(self.results, indent=1), "utf-8")

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def forget_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float | None:
        """GiB of tensors at the highest point since :meth:`forget_peak`; None on a CPU. The CUDA context is not in it."""
        return torch.cuda.max_memory_allocated() / GIB if self.cuda else None

    def allocated(self) -> float | None:
        return torch.cuda.memory_allocated() / GIB if self.cuda else None

    def empty(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    # -- sections ------------------------------------------------------------------------------------------------

    def section(self, name: str, work: Callable[[Bench], None], end: float) -> None:
        """Run one section until ``end`` seconds after the start at the latest. What it measured before it failed is kept."""
        began, state, why = time.perf_counter(), "done", ""
        left = end - (began - self.started)
        print(f"== {name}, {left:.0f} s", flush=True)
        try:
            if left < 2:
                raise Overrun
            with deadline(left):
                work(self)
        except Overrun:
            state = "dropped at its deadline"
        except Exception:  # noqa: BLE001  # the next section must have its turn
            state, why = "failed", traceback.format_exc(limit=-6)
            print(why, flush=True)
        self.results["sections"][name] = {"state": state, "seconds": round(time.perf_counter() - began, 2), "error": why}
        self.empty()
        self.save()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """One measurement that may fail by itself, for want of memory or of a kernel; the rest of the section goes on."""
        why = ""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # recorded, with its place
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"   {what} failed: {traceback.format_exc(limit=-4)}", flush=True)
        if why:
            self.results.setdefault("failures", []).append({"what": what, "error": why})
        self.empty()

    # -- measurements --------------------------------------------------------------------------------------------

    def time(self, work: Callable[[], Any], n: int = 10, warm: int = 3) -> dict[str, Any]:
        """Median milliseconds of ``n`` calls after ``warm`` ones, each waited for, their range, and the peak during them."""
        return self.in_turn({"": work}, n, warm)[""]

    def in_turn(self, works: Mapping[str, Callable[[], Any]], n: int = 10, warm: int = 3) -> dict[str, dict[str, Any]]:
        """As :meth:`time`, of several that are called in turn, so that what slows the host for a while slows all of them."""
        n, warm = (min(n, 2), min(warm, 1)) if self.smoke else (n, warm)
        for work in works.values():
            for _ in range(warm):
                work()
        taken: dict[str, list[float]] = {name: [] for name in works}
        peaks: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(n):
            for name, work in works.items():
                self.sync()
                self.forget_peak()
                start = time.perf_counter()
                work()
                self.sync()
                taken[name].append(1000 * (time.perf_counter() - start))
                peaks[name].append(self.peak() or 0.0)
        return {k: {**_timed(v, max(peaks[k]) if self.cuda else None), "calls": warm + n} for k, v in taken.items()}

    def updates(self, model: DiffusionModel, method: Method, n: int = 10, warm: int = 3) -> dict[str, Any]:
        """As :meth:`time`, of single weight updates of a method, by its own ``erase``: what lies before the first update, such
        as filling a pool, is not in them. The run ends after the last one, so no patch and no digest is made."""
        n, warm = (2, 1) if self.smoke else (n, warm)
        ticks: list[float] = []
        counted: list[dict[str, int]] = []

        def on_step(step: Step, total: int) -> None:
            self.sync()
            ticks.append(time.perf_counter())
            counted.append(model.evals.snapshot())
            if len(ticks) == warm:
                self.forget_peak()
            if len(ticks) == warm + n:
                raise Enough

        began = time.perf_counter()
        try:
            method.erase(model, EraseRequest(("cat",)), Run(on_step=on_step))
        except Enough:
            pass
        else:
            raise RuntimeError(f"{method.label} made fewer than {warm + n} updates.")
        taken = [1000 * (b - a) for a, b in zip(ticks[warm - 1 :], ticks[warm:], strict=False)]
        first, last = counted[warm - 1], counted[-1]
        evals = {k: (last[k] - first[k]) / n for k in first}
        return {**_timed(taken, self.peak()), "evals": evals, "seconds_before": ticks[0] - began}

    def row(self, **facts: Any) -> dict[str, Any]:
        """One line of the table: model, what, scope, dtype, mode, then what was measured and what was predicted."""
        self.results["rows"].append(facts)
        print("   " + line(facts), flush=True)
        return facts


def _timed(taken: list[float], peak: float | None) -> dict[str, Any]:
    return {"ms": median(taken), "ms_range": [min(taken), max(taken)], "repeats": len(taken), "peak_gib": peak}


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises Overrun inside, once the seconds are over and Python runs again."""

    def ring(signum: int, frame: Any) -> None:
        raise Overrun

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tflop_of(work: Callable[[], Any]) -> float:
    """10^12 floating-point operations of one call, counted by torch from shapes."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return counter.get_total_flops() / 1e12


def machine(bench: Bench) -> dict[str, Any]:
    """What the figures belong to."""
    facts: dict[str, Any] = {
        "note": "random weights: speed and memory only",
        "card": "CPU",
        "driver": "",
        "memory_gib": None,
        "cuda": torch.version.cuda,
        "smoke": bench.smoke,
        "seed": 0,
        "threads": torch.get_num_threads(),
        "versions": dict(versions()),
        "commit": os.environ.get("EFFACE_COMMIT", "") or _asked("git", "rev-parse", "HEAD"),
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        "attention": {
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        },
    }
    if bench.cuda:
        facts["card"] = torch.cuda.get_device_name()
        facts["memory_gib"] = torch.cuda.get_device_properties(0).total_memory / GIB
        facts["driver"] = _asked("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return facts


def _asked(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def line(row: dict[str, Any]) -> str:
    """model | what | dtype | mode | ms | peak GiB | TFLOP/s | predicted"""

    def number(value: float | None, digits: int = 4) -> str:
        return "" if value is None else f"{value:.{digits}g}"

    cells = [row["model"], row["what"], row.get("dtype", ""), row.get("mode", ""), number(row.get("ms"))]
    cells += [number(row.get("peak_gib")), number(row.get("tflop_per_s"), 3), prediction(row)]
    return " | ".join([*cells, *([row["note"]] if row.get("note") else [])])


def prediction(row: dict[str, Any]) -> str:
    """What was said before the run, of time and of memory."""
    memory = "" if row.get("predicted_gib") is None else f"{row['predicted_gib']:.3g} GiB"
    return "; ".join(p for p in (row.get("predicted", ""), memory) if p)


def table(results: dict[str, Any]) -> str:
    head = f"{results['card']}, torch {results['versions'].get('torch', '?')}: {results['note']}"
    names = "model | what | dtype | mode | ms | peak GiB | TFLOP/s | predicted | note"
    states = [f"{name}: {s['state']}, {s['seconds']} s" for name, s in results["sections"].items()]
    failed = [f"FAILED {f['what']}: {f['error']}" for f in results.get("failures", [])]
    return "\n".join([head, names, *map(line, results["rows"]), *states, *failed])
