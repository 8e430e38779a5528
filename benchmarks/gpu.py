"""What efface costs on one GPU: time, evaluations and peak memory at the sizes of SD 1.5, SDXL, SD3.5-medium and FLUX.

    python benchmarks/gpu.py --out FOLDER [--sections sd15 sdxl] [--seconds 320]
    EFFACE_GPU_SMOKE=1 python benchmarks/gpu.py --out FOLDER        the rehearsal: every section, tiny networks, on the CPU

benchmarks/gpu.sh runs this, the tests that need a GPU and a training run in one command of less than nine minutes. Every section
has a deadline and FOLDER/results.json is written anew after each; a section that is late is dropped and recorded as dropped. All
models run through efface's adapters and methods. "official" is a re-enactment of the evaluations that the official code spends,
forward passes only and with our sampler's savings, so it is faster than that code is. Rows carry what was predicted before the
first run, and of memory what `efface estimate` says.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_efface import (
    forward,
    gradients,
    put_errors,
    raw,
    sd15,
    sd15_fp32,
    sd15_settings,
    sdxl,
    sdxl_settings,
    start,
    trained_methods,
    where,
)
from gpu_flow import flux, sd35_medium
from gpu_measure import Bench, table
from gpu_models import BF16

SHARES = {
    "ceilings": 30,
    "sd15": 70,
    "sd15-fp32": 25,
    "sdxl": 80,
    "sd35-medium": 70,
    "flux": 80,
    "compile": 100,
    "sd15-settings": 50,
    "sdxl-settings": 100,
}
"""How the time is divided among the sections that run. A section may also use what the ones before it have left over."""
NAMED = ("compile", "sd15-settings", "sdxl-settings")
"""Sections that run only when they are named."""


def ceilings(bench: Bench) -> None:
    """What the card can do at most: a matrix product and a copy."""
    side, elements = (256, 2**20) if bench.smoke else (8192, 2**30)
    a, b = (torch.randn(side, side, device=bench.device, dtype=BF16) for _ in range(2))
    found = bench.time(lambda: a @ b, n=20)
    rate = 2 * side**3 / 1e9 / found["ms"]
    bench.row(model="card", what=f"product {side}^3", dtype="bf16", predicted="770-800 TFLOP/s", **found, tflop_per_s=rate)
    source = torch.empty(elements, device=bench.device)
    target = torch.empty_like(source)
    found = bench.time(lambda: target.copy_(source))
    rate = 2 * source.nbytes / 1e9 / found["ms"]
    told = f"{rate:.3g} TB/s"
    bench.row(model="card", what="copy", dtype="fp32", predicted="3.0 TB/s (H100), 4.3 (H200)", note=told, **found, tb_per_s=rate)


def compiled(bench: Bench) -> None:
    """Compiled variants, last because the compiler takes longer than what it compiles. Its seconds are the row's note."""
    for name in ("sd35-medium", "flux"):
        with bench.attempt(f"{name} compiled blocks"):
            model, facts = start(bench, name, BF16)
            forward(bench, model, facts)
            for block in (b for n, part in model.network.named_children() if n.endswith("transformer_blocks") for b in part):
                block.compile()
            began = time.perf_counter()
            row = forward(bench, model, facts, mode="compiled blocks")
            row["note"] = f"{time.perf_counter() - began:.3g} s with the compiler's"
            bench.save()
            del model
        torch.compiler.reset()
    with bench.attempt("sd15 compiled"):
        model, facts = start(bench, "sd15", BF16)
        call = raw(model, 2)
        eager = bench.time(call)
        facts |= {"forward_ms": eager["ms"] / 2}
        model.unet.compile()
        found = bench.time(call)
        told = f"eager in this section {eager['ms']:.4g} ms"
        bench.row(**where(facts), what="forward, 2 rows", mode="compiled", predicted="6-8 ms", note=told, **found)
        bench.save()
    torch.compiler.reset()
    with bench.attempt("sd15 compiled, ESD"):
        model, facts = start(bench, "sd15", BF16)
        plain = gradients(model)
        model.configure(compiled=True)  # its student's gradients are checked against the plain ones before the first update
        found = bench.updates(model, trained_methods("sd15")["ESD"][0])
        told = f"{found['seconds_before']:.3g} s to compile, check and fill"
        bench.row(**where(facts), what="ESD, one update", mode="compiled", note=told, **found)
        put_errors(bench, facts, "compiled, against eager", "below 1e-3", gradients(model), plain)
    torch.compiler.reset()


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "ceilings": ceilings,
    "sd15": sd15,
    "sd15-fp32": sd15_fp32,
    "sdxl": sdxl,
    "sd35-medium": sd35_medium,
    "flux": flux,
    "compile": compiled,
    "sd15-settings": sd15_settings,
    "sdxl-settings": sdxl_settings,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results.json; rows are added to one that is there")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=[s for s in SECTIONS if s not in NAMED])
    parser.add_argument("--seconds", type=float, default=3600, help="for all of them together")
    args = parser.parse_args()
    smoke = os.environ.get("EFFACE_GPU_SMOKE") == "1"
    bench, end = Bench(args.out, "cpu" if smoke else "cuda", smoke), 0.0
    told = ("card", "memory_gib", "driver", "cuda", "tf32", "attention", "threads", "commit", "versions")
    print({k: bench.results[k] for k in told}, flush=True)
    for name in args.sections:
        end += args.seconds * SHARES[name] / sum(SHARES[s] for s in args.sections)
        bench.section(name, SECTIONS[name], end)
    print(table(bench.results), flush=True)


if __name__ == "__main__":
    main()
