"""SD3.5-medium and FLUX on one GPU: the raw networks, with updates of the shape of efface's written out; see gpu.py."""

from __future__ import annotations

from typing import Any

import torch
from closed_form import text_rows
from gpu_measure import ACTIVATIONS, GIB, Bench, network_bytes, tflop_of
from gpu_models import BF16, FlowNetwork, flow_network

from efface.equations.closed_form import edited, shared_edit
from efface.equations.guidance import away_from


def flow_forward(bench: Bench, flow: FlowNetwork, pixels: int, rows: int, mode: str, predicted: str) -> None:
    z, c = flow.latents(rows, pixels), flow.conds(rows)
    with torch.no_grad():
        tflop = tflop_of(lambda: flow(flow.net, z, c)) if mode == "eager" else None
        found = bench.time(lambda: flow(flow.net, z, c), n=10 if pixels < 1024 else 5)
        if not bool(torch.isfinite(flow(flow.net, z, c)).all()):
            raise RuntimeError(f"{flow.name} with random weights gives no finite output.")
    rate = None if tflop is None else 1000 * tflop / found["ms"]
    what = f"forward, {rows} row{'s' * (rows > 1)}"
    bench.row(**of(flow, pixels), what=what, mode=mode, predicted=predicted, tflop=tflop, tflop_per_s=rate, **found)


def of(flow: FlowNetwork, pixels: int) -> dict[str, Any]:
    return {"model": f"{flow.name} {pixels} px", "dtype": "bf16", "scope": "network only", "pixels": pixels}


def esd_update(flow: FlowNetwork, student: torch.nn.Module, adam: torch.optim.Optimizer, pixels: int) -> None:
    """As :class:`efface.ESD` with a filled pool: three evaluations, one of them with backward."""
    z, c_e, c_0 = flow.latents(1, pixels), flow.conds(1, 1), flow.conds(1, 2)
    with torch.no_grad():
        v_e, v_0 = flow(flow.net, torch.cat([z, z]), beside(c_e, c_0)).chunk(2)
    adam.zero_grad(set_to_none=True)
    (flow(student, z, c_e) - away_from(v_0, v_e, 1.0)).square().mean().backward()
    adam.step()


def ap_update(flow: FlowNetwork, student: torch.nn.Module, adam: torch.optim.Optimizer, pixels: int) -> None:
    """As :class:`efface.AP` with ``update="joint"``, eta 0 and a filled pool: four evaluations, two of them with backward,
    which also reaches the searched conditioning."""
    z, c_e, c_0 = flow.latents(2, pixels), flow.conds(1, 1), flow.conds(1, 2)
    searched = flow.conds(1, 3)
    searched[0].requires_grad_(True)
    with torch.no_grad():
        goals = flow(flow.net, z, beside(c_0, searched))
    adam.zero_grad(set_to_none=True)
    off = (flow(student, z, beside(c_e, searched)) - goals).square().flatten(1).mean(1)
    off.sum().backward()
    adam.step()


def beside(*conds: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([c[0] for c in conds]), torch.cat([c[1] for c in conds])


def flow_updates(bench: Bench, flow: FlowNetwork, pixels: int, modes: list[tuple[str, bool]], predicted: dict[str, str]) -> None:
    names, work = flow.text_kv(), {"ESD": esd_update, "AP, joint search": ap_update}
    for what, checkpointing in modes:
        with bench.attempt(f"{flow.name} {pixels} px {what}, checkpointing {checkpointing}"):
            (flow.net.enable_gradient_checkpointing if checkpointing else flow.net.disable_gradient_checkpointing)()
            student, weights = flow.student(names)
            adam = torch.optim.Adam(weights, lr=1e-5)
            found = bench.time(lambda s=student, a=adam, w=what: work[w](flow, s, a, pixels), n=5, warm=2)
            trained = sum(p.numel() for p in weights)
            kept = 0.0 if bench.smoke else ACTIVATIONS[flow.name, pixels][checkpointing] * (1 if what == "ESD" else 2)
            memory = (network_bytes(flow.net) + 18 * trained) / GIB + kept
            mode = "checkpointing" if checkpointing else "eager"
            told = predicted.get(what, "") if not checkpointing else ""
            extra = {"predicted": told, "predicted_gib": None if bench.smoke else memory, "trained": trained}
            bench.row(**of(flow, pixels), what=f"{what}, one update", mode=mode, **found, **extra)
            del student, weights, adam
    flow.net.disable_gradient_checkpointing()


def sd35_medium(bench: Bench) -> None:
    flow = flow_network("sd35-medium", BF16, bench.device, bench.smoke)
    sizes = (16, 32) if bench.smoke else (512, 1024)
    flow_forward(bench, flow, sizes[0], 2, "eager", "12-20 ms")
    flow_forward(bench, flow, sizes[1], 2, "eager", "55-65 ms")
    both = [("ESD", False), ("ESD", True), ("AP, joint search", False), ("AP, joint search", True)]
    flow_updates(bench, flow, sizes[0], both, {})
    flow_updates(bench, flow, sizes[1], both, {"ESD": "200 ms", "AP, joint search": "8 F"})
    with bench.attempt("sd35-medium sampling"), torch.no_grad():
        steps = 3 if bench.smoke else 28
        z, c = flow.latents(2, sizes[1]), flow.conds(4)

        def euler() -> None:
            x = z
            for i in range(steps):
                v_0, v_c = flow(flow.net, torch.cat([x, x]), c, 1 - i / steps).chunk(2)
                x = x - (v_0 + 4.5 * (v_c - v_0)) / steps

        found = bench.time(euler, n=3, warm=1)
        bench.row(**of(flow, sizes[1]), what=f"sampling, Euler, {steps} steps, batch 2", mode="eager", **found)


def flux(bench: Bench) -> None:
    flow = flow_network("flux", BF16, bench.device, bench.smoke)
    sizes = (32, 64) if bench.smoke else (512, 1024)
    flow_forward(bench, flow, sizes[0], 1, "eager", "50-60 ms")
    flow_forward(bench, flow, sizes[1], 1, "eager", "180-200 ms")
    both = [("ESD", True), ("ESD", False), ("AP, joint search", True), ("AP, joint search", False)]
    flow_updates(bench, flow, sizes[0], both, {"ESD": "300-350 ms", "AP, joint search": "8 F"})
    flow_updates(bench, flow, sizes[1], [("ESD", True)], {})
    with bench.attempt("flux context embedder"):
        w, many = flow.net.context_embedder.weight, 5 if bench.smoke else 100
        x, y = (text_rows(many, w.shape[1], seed) for seed in (0, 1))
        ones = torch.ones(many)
        found = bench.time(lambda: edited(w.cpu(), shared_edit(x, y, ones, x[:0], ones[:0], 0.5)), n=3, warm=1)
        row = {**of(flow, sizes[0]), "scope": "efface's closed form, network only"}
        bench.row(**row, what=f"UCE of the context embedder, {many} targets", mode="float64 on the CPU", **found)
    with bench.attempt("flux fp8 storage"):
        flow.net.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=BF16)
        bench.empty()
        for size in sizes:
            flow_forward(bench, flow, size, 1, "fp8 storage", "1.1-1.3 times slower, 11 GiB less")
