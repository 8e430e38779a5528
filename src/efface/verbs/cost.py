"""What a verb is about to spend, measured by a probe and said before anything starts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

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


def announce(note: Callable[[str], None] | None, model: DiffusionModel, evals: float, before: str, after: str = "") -> None:
    """Say what a verb is about to spend. Nobody listens: no probe is run, which on a large model and a CPU takes minutes."""
    if note is not None:
        note(f"{before}{predicted(model, evals)}{after}.")


def predicted(model: DiffusionModel, evals: float, *, batch: int = 32, processes: int = 1) -> str:
    """ "N UNet evaluations, M min on DEVICE", from a measured probe: what is said before anything starts."""
    minutes = evals * seconds_per_eval(model, batch) / 60 / processes
    return f"{evals:,.0f} UNet evaluations, {minutes:.1f} min on {model.device}"
