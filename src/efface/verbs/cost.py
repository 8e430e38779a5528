"""What a verb is about to spend, measured by a probe and said before anything starts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch

from ..models.base import DiffusionModel


def seconds_per_eval(model: DiffusionModel, batch: int = 4) -> float:
    """A measured probe: the fastest of three forward calls after one to warm up, per evaluation."""
    z = torch.zeros((batch, *model.latent_shape), device=model.device)
    t, c = torch.full((batch,), 500, device=model.device), model.encode([""] * batch)
    before, fastest = dataclasses.replace(model.evals), float("inf")
    with torch.no_grad():
        for _ in range(4):
            start = time.perf_counter()
            model.predict(z, t, c)
            fastest = min(fastest, time.perf_counter() - start)
    model.evals.forward, model.evals.calls = before.forward, before.calls  # the probe is no part of any run's cost
    return fastest / batch


class Spent:
    """What the block took, as ``facts``: ``seconds`` of wall-clock time, the ``hardware``, and on a GPU ``peak_gib``, the most
    memory that tensors held. On a CPU there is no such figure for one part of a process."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.facts = device, dict[str, Any]()

    def __enter__(self) -> Spent:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        gpu = self.device.type == "cuda"
        if gpu:
            torch.cuda.synchronize(self.device)
        self.facts["seconds"] = round(time.perf_counter() - self.start, 3)
        threads = torch.get_num_threads()
        cpu = f"the CPU with {threads} thread{'' if threads == 1 else 's'}"
        self.facts["hardware"] = (
            torch.cuda.get_device_name(self.device) if gpu else cpu if self.device.type == "cpu" else str(self.device)
        )
        if gpu:
            self.facts["peak_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)


def announce(
    note: Callable[[str], None] | None,
    model: DiffusionModel,
    evals: float,
    what: str,
    *,
    at_most: bool = False,
    gradients: bool = False,
) -> None:
    """Say in two sentences what a verb does (``what``, without the full stop) and what that costs.

    When nobody listens, no probe is run, which on a large model and a CPU takes minutes.
    """
    if note is not None:
        note(f"{what}. This takes {'at most ' if at_most else ''}{predicted(model, evals, gradients=gradients)}.")


def predicted(model: DiffusionModel, evals: float, *, batch: int = 32, processes: int = 1, gradients: bool = False) -> str:
    """The cost of ``evals`` UNet evaluations in words, from a measured probe of forward passes.

    ``gradients``: part of them are differentiated. A backward pass takes about as long as two forward passes, and of a training
    method's evaluations at most half are differentiated, so the time is up to twice that of the forward passes.
    """
    least = evals * seconds_per_eval(model, batch) / processes
    return f"{evals:,.0f} UNet evaluations, {duration(least, 2 * least if gradients else least)} on {model.device}"


def duration(least: float, most: float) -> str:
    """A time or a range of times in seconds, as text: in seconds up to two minutes, in minutes up to two hours, else in hours."""
    if most < 1:
        return "less than a second"
    unit, size = ("seconds", 1) if most < 120 else ("minutes", 60) if most < 7200 else ("hours", 3600)
    low, high = (f"{t / size:.2g}" if t / size < 10 else f"{t / size:.0f}" for t in (least, most))
    return f"about {high} {unit}" if low == high else f"{low} to {high} {unit}"
