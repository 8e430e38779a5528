"""SD3.5-medium and FLUX on one GPU, through efface's adapters and methods; see gpu.py."""

from __future__ import annotations

from gpu_efface import closed_form, forward, sampling, start, updates, with_less
from gpu_measure import Bench
from gpu_models import BF16


def sd35_medium(bench: Bench) -> None:
    """At 1,024 pixels."""
    model, facts = start(bench, "sd35-medium", BF16)
    forward(bench, model, facts, "55-65 ms")
    updates(bench, model, facts, ("ESD",))
    closed_form(bench, model, facts, digest=False, official=False)
    sampling(bench, model, facts, batch=1, steps=28, scale=4.5)
    with_less(bench, model, facts, {"checkpointing, encoders offloaded": "10.5 GiB less"})


def flux(bench: Bench) -> None:
    """At 512 pixels."""
    model, facts = start(bench, "flux", BF16)
    forward(bench, model, facts, "100-120 ms")
    updates(bench, model, facts, ("ESD",), modes=(True, False))
    closed_form(bench, model, facts, digest=False, official=False)
    sampling(bench, model, facts, batch=1, steps=28, scale=3.5)
    with_less(bench, model, facts, {"checkpointing, encoders offloaded": "9 GiB less"})
