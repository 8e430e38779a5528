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


def announce(note: Callable[[str], None] | None, model: DiffusionModel, evals: float, before: str, after: str = "") -> None:
    """Say what a verb is about to spend. Nobody listens: no probe is run, which on a large model and a CPU takes minutes."""
    if note is not None:
        note(f"{before}{predicted(model, evals)}{after}.")


def predicted(model: DiffusionModel, evals: float, *, batch: int = 32, processes: int = 1) -> str:
    """ "N UNet evaluations, M min on DEVICE", from a measured probe: what is said before anything starts."""
    minutes = evals * seconds_per_eval(model, batch) / 60 / processes
    return f"{evals:,.0f} UNet evaluations, {minutes:.1f} min on {model.device}"
