"""What is measured of one model on one GPU, through efface's adapters and methods; sections of SD 1.5 and SDXL. See gpu.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from ap_cost import OFFICIAL, official_esd_iteration, official_iteration
from closed_form import official_vectors, text_rows
from gpu_measure import GIB, Bench, tflop_of
from gpu_models import BF16, TARGET, sized

from efface import AGE, AP, ESD, RAP, RECE, UCE, AdvUnlearn, Gumbel
from efface.concepts.request import EraseRequest
from efface.methods import Method
from efface.models.cond import Cond
from efface.models.flux import Flux, packed
from efface.models.sd import StableDiffusion
from efface.training.latents import LatentPool
from efface.training.samplers import Pool as PoolSampler
from efface.verbs.memory import ON_A_GPU, Needs

TRAIN = {"sd15": "xattn", "sdxl": "xattn-kv", "sd35-medium": "text-kv", "flux": "text-kv"}
NEAREST = {"sd15": 100, "sdxl": 24, "sd35-medium": 24, "flux": 24}
"""Candidates of a search. An update takes as long with few as with many; walking a trajectory for each does not."""
NAMES = 100
"""Concepts that the largest closed-form edit erases at once."""


def inputs(model: StableDiffusion, rows: int) -> tuple[torch.Tensor, torch.Tensor, Cond]:
    z = model.noise(rows, torch.Generator().manual_seed(0))
    return z, torch.full((rows,), 501, device=z.device), model.encode([TARGET] * rows)


def raw(model: StableDiffusion, rows: int) -> Callable[[], torch.Tensor]:
    """The bare network in the precision of its weights, without the adapter's autocast: what a stock pipeline calls."""
    z, t, c = inputs(model, rows)
    beside = model._beside(c)
    if "added_cond_kwargs" in beside:
        beside = {"added_cond_kwargs": {k: v.to(model.dtype) for k, v in beside["added_cond_kwargs"].items()}}
    z, tokens = z.to(model.dtype), c.tokens.to(model.dtype)
    return torch.no_grad()(lambda: model.unet(z, t, tokens, return_dict=False, **beside)[0])


def forward(
    bench: Bench, model: StableDiffusion, facts: dict[str, Any], predicted: str = "", mode: str = "adapter"
) -> dict[str, Any]:
    """Items 1 to 4: a forward pass of two rows by the adapter, which is what F is counted in. Leaves the FLOP of one row in
    ``facts``, and gives the table's row."""
    z, t, c = inputs(model, 2)
    with torch.no_grad():
        if "tflop" not in facts:
            facts["tflop"] = tflop_of(lambda: model.predict(z, t, c)) / 2
        found = bench.time(lambda: model.predict(z, t, c))
        if not bool(torch.isfinite(model.predict(z, t, c)).all()):
            raise RuntimeError(f"{model.name} with random weights gives no finite output.")
    facts["forward_ms"] = found["ms"] / 2
    return put_forward(bench, facts, mode, predicted, found)


def put_forward(bench: Bench, facts: dict[str, Any], mode: str, predicted: str, found: dict[str, Any]) -> dict[str, Any]:
    rate = 2 * facts["tflop"] / found["ms"] * 1000
    return bench.row(**where(facts), what="forward, 2 rows", mode=mode, predicted=predicted, tflop_per_s=rate, **found)


def bare_forwards(
    bench: Bench, model: StableDiffusion, facts: dict[str, Any], predicted: Mapping[str, str], variants: bool = True
) -> None:
    """The same of the bare network; ``variants``: also as a CUDA graph and with channels last."""

    def put(mode: str, found: dict[str, Any]) -> None:
        put_forward(bench, facts, mode, predicted.get(mode, ""), found)

    call = raw(model, 2)
    put("bare network", bench.time(call))
    if not variants:
        return
    if bench.cuda:
        with bench.attempt(f"{model.name} CUDA graph"):
            put("CUDA graph", bench.time(captured(call)))
    with bench.attempt(f"{model.name} channels_last"):
        model.unet.to(memory_format=torch.channels_last)
        put("channels_last", bench.time(call))
    model.unet.to(memory_format=torch.contiguous_format)


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The kernels of one call as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def where(facts: dict[str, Any]) -> dict[str, Any]:
    return {k: facts[k] for k in ("model", "dtype", "scope", "pixels")}


def trained_methods(name: str) -> dict[str, tuple[Method, str]]:
    """One update of each: the pool is small, so that filling it costs little; an update does not depend on its size."""
    pooled: dict[str, Any] = {"sampler": PoolSampler(trajectories=1), "sampling_steps": 2, "train": TRAIN[name]}
    few = NEAREST[name]
    attack_steps = 30 if name == "sd15" else 5
    esd, ap = ("60-90 ms", "8 F with joint search, 11 F alternating") if name == "sd15" else ("200-250 ms", "8 F joint, 11 F")
    return {
        "ESD": (ESD(**pooled), esd),
        "AP": (AP(search=Gumbel(nearest=few), **pooled), ap),
        "AP, joint search": (AP(search=Gumbel(nearest=few, update="joint"), **pooled), "8 F"),
        "AGE": (AGE(search=Gumbel(nearest=few, tau=0.1), **pooled), "about 15 F"),
        "RAP": (RAP(search=Gumbel(nearest=few), **pooled), "about 20 F"),
        f"AdvUnlearn, {attack_steps} attack steps": (
            AdvUnlearn(warmup=0, pool=1, sampling_steps=2, most=16, attack_steps=attack_steps),
            f"about {3 * attack_steps + 25} F",
        ),
    }


COUNTED: dict[str, Any] = {}
"""Activations by model, kept because counting them takes seconds."""


def predicted_memory(model: StableDiffusion, method: Method) -> float:
    """GiB that ``efface estimate`` says of the run under the model's settings, without what CUDA itself takes."""
    needs = Needs(model, method)
    needs._kept = COUNTED.setdefault(model.name, {})
    return needs.total() / GIB - (ON_A_GPU if model.device.type == "cuda" else 0.0)


MAIN = ("ESD", "AP", "AP, joint search")
"""The updates that the official schedules are compared with: measured first, because a section can end at its deadline."""


def updates(
    bench: Bench, model: StableDiffusion, facts: dict[str, Any], names: Sequence[str], modes: Sequence[bool] = (False,)
) -> dict[str, float]:
    """Items 5, 6 and 11. Milliseconds by method. ``modes``: with gradient checkpointing or without."""
    taken = {}
    for what, (method, predicted) in trained_methods(model.name).items():
        if what not in names:
            continue
        n, warm = (2, 1) if "AdvUnlearn" in what else (10, 3) if model.name == "sd15" else (5, 2)
        for checkpointing in modes:
            with bench.attempt(f"{model.name} {facts['dtype']} {what}, checkpointing {checkpointing}"):
                model.network.disable_gradient_checkpointing()
                model.configure(checkpointing=checkpointing)
                found = bench.updates(model, method, n, warm)
                mode = "checkpointing" if checkpointing else "eager"
                extra = {"predicted": predicted if not checkpointing else "", "forwards": found["ms"] / facts["forward_ms"]}
                if what in MAIN:
                    extra["predicted_gib"] = predicted_memory(model, method)
                bench.row(**where(facts), what=f"{what}, one update", mode=mode, **found, **extra)
                taken.setdefault(what, found["ms"])
    model.network.disable_gradient_checkpointing()
    return taken


def official(bench: Bench, model: StableDiffusion, facts: dict[str, Any], ours: Mapping[str, float | None], n: int) -> None:
    """Item 7: outer iterations of the official schedule with the mean number of evaluations, on the same network."""
    steps = 6 if bench.smoke else 50
    low, high = steps // 2 - 1, steps // 2  # their mean is the mean level, so that one iteration costs what the mean one does
    predicted = {"AP": "30 times ours", "ESD": "12 times ours"}
    ours = {"ESD": ours.get("ESD"), "AP": ours.get("AP, joint search")}  # of AP the fastest variant, as in the documentation

    def both_levels() -> None:
        for k in (low, high):
            official_esd_iteration(model, k, steps)

    for what, per, work in (
        ("AP", 1, lambda: official_iteration(model, low, high, steps)),
        ("ESD", 2, both_levels),
    ):
        with bench.attempt(f"official {what} on {model.name}"), torch.no_grad():
            before = model.evals.snapshot()
            found = bench.time(work, n=n, warm=0)
            calls = per * found["calls"]
            evals = {k: (v - before[k]) / calls for k, v in model.evals.snapshot().items()}
            found = {**found, "ms": found["ms"] / per, "ms_range": [v / per for v in found["ms_range"]]}
            mine = ours.get(what)
            told = "" if mine is None else f"{found['ms'] / mine:.3g} times ours"
            bench.row(
                **{**where(facts), "scope": "official schedule re-enacted"},
                what=f"{what}, one outer iteration",
                method=what,
                mode="forward passes only",
                predicted=predicted[what],
                note=f"{told}; {evals['forward']:.4g} evaluations, documented {OFFICIAL[what.lower()]}",
                evals=evals,
                times_ours=None if mine is None else found["ms"] / mine,
                ours="AP, joint search, one update" if what == "AP" else f"{what}, one update",
                **found,
            )


def pool_filling(bench: Bench, model: StableDiffusion, facts: dict[str, Any]) -> None:
    """Item 10: 32 trajectories in one batch, of 50 levels the ten noisiest."""
    rows, levels = (4, 3) if bench.smoke else (32, 10)

    def fill() -> None:
        pool = LatentPool(model, steps=50, trajectories=rows, guidance=3.0, solver="ddim", seed=0, batch=1, levels=levels)
        pool.fill([TARGET])

    found, evals = bench.time(fill, n=3, warm=1), 2 * rows * (levels - 1)
    rate = evals * facts["tflop"] / found["ms"] * 1000
    what = f"pool, {rows} trajectories x {levels} levels"
    bench.row(
        **where(facts), what=what, mode=f"batch {2 * rows}", predicted="above 40 % of the ceiling", tflop_per_s=rate, **found
    )


def sampling(bench: Bench, model: StableDiffusion, facts: dict[str, Any], batch: int, steps: int, scale: float = 7.5) -> None:
    """Item 9: latents of whole pictures, ours and by the stock pipeline of the same modules, in turn; nothing is decoded."""
    steps, fast = (3, 3) if bench.smoke else (steps, 20)
    for what, by, n in drawings(model, batch, steps, fast, scale):
        with bench.attempt(f"{model.name} {what}"):
            taken = bench.in_turn({who: partial(draw, n) for who, draw in by.items()}, n=5, warm=1)
            for scope, found in taken.items():
                told = f"{1000 * batch / found['ms']:.3g} pictures/s, {found['ms'] / n:.3g} ms a step"
                if scope == "efface":
                    told += f", {found['ms'] / taken['stock pipeline']['ms']:.3g} times the stock pipeline"
                predicted = "4-6 pictures/s" if (model.name, n) == ("sd15", fast) else ""
                rate = model.branches(scale) * batch * n * facts["tflop"] / found["ms"] * 1000
                row = {**where(facts), "scope": scope, "what": f"sampling, {what}, {n} steps, batch {batch}", "mode": scope}
                bench.row(**row, predicted=predicted, note=told, tflop_per_s=rate, **found)


def drawings(
    model: StableDiffusion, batch: int, steps: int, fast: int, scale: float = 7.5
) -> Iterator[tuple[str, dict[str, Callable[[int], Any]], int]]:
    """For every solver its name; who draws latents with it, as a function of the number of steps; and the number that is usual.
    One after the other, because the stock pipeline has one scheduler at a time."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    c, noise = model.encode([TARGET] * batch), model.noise(batch, torch.Generator().manual_seed(0))
    pipe = model._pipeline()[0]
    pipe.set_progress_bar_config(disable=True)
    given = stock_arguments(model, pipe, c, noise)

    def stock(n: int) -> Any:
        return pipe(**given, num_inference_steps=n, guidance_scale=scale, output_type="latent")

    def dpm(n: int) -> None:
        deque(model.walk(c, noise, model.schedule.timesteps(n), scale, solver="dpm"), maxlen=1)

    usual = "Euler" if model.part == "transformer" else "DDIM"
    yield usual, {"efface": lambda n: model.denoise(c, noise, n, scale), "stock pipeline": stock}, steps
    if model.part == "unet":
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        yield "DPM-Solver++", {"efface": dpm, "stock pipeline": stock}, fast


def stock_arguments(model: StableDiffusion, pipe: Any, c: Cond, noise: torch.Tensor) -> dict[str, Any]:
    """What the stock pipeline is given so that it draws what efface draws: encodings, start noise, and the picture's size."""
    side = model.latent_shape[1] * pipe.vae_scale_factor
    given: dict[str, Any] = {"height": side, "width": side}
    given["latents"] = (packed(noise) if isinstance(model, Flux) else noise).to(model.dtype)
    for prefix, read in (("", c), ("negative_", None if model.distilled else model.unconditional(len(c)))):
        if read is not None:
            given[f"{prefix}prompt_embeds"] = read.tokens.to(model.dtype)
            given |= {f"{prefix}{k}_prompt_embeds": v.to(model.dtype) for k, v in read.extras.items()}
    return given


def closed_form(
    bench: Bench, model: StableDiffusion, facts: dict[str, Any], epochs: int = 0, digest: bool = True, official: bool = True
) -> None:
    """Item 8. The digest of all base weights, which every patch carries, is timed apart from the edit, if ``digest``;
    ``official``: also the inverses of every layer that the official code takes."""
    many = 5 if bench.smoke else NAMES
    names = [n for n in model.concept_names if n != TARGET][:many]
    if digest:
        bench.row(**where(facts), what="digest of the base weights", mode="CPU", **bench.time(model.digest, n=1, warm=0))
    # Of this instance alone: the patch's card asks for it, and to hash gigabytes takes longer than the edit.
    model.identity = lambda part="": {}  # type: ignore[method-assign]
    runs: list[tuple[str, Method, list[str], str, int]] = [
        ("UCE, 1 target", UCE(), names[:1], "", 2),
        (f"UCE, {many} targets", UCE(), names, "below 2 s" if model.name == "sdxl" else "", 2),
    ]
    if epochs:
        runs.append((f"RECE, 1 target, {epochs} epochs", RECE(epochs=epochs, stop=1e9), names[:1], "", 1))
    for what, method, targets, predicted, n in runs:
        with bench.attempt(f"{model.name} {what}"):
            found = bench.time(lambda method=method, t=targets: method.erase(model, EraseRequest(tuple(t))), n=n, warm=0)
            bench.row(
                **where(facts),
                what=f"{what}, without the digest",
                mode="solved in float64 on the CPU",
                predicted=predicted,
                **found,
            )
    del model.identity  # the class's own shows again
    if official:
        per_layer_inverses(bench, model, facts, many)


def per_layer_inverses(bench: Bench, model: StableDiffusion, facts: dict[str, Any], many: int) -> None:
    with bench.attempt(f"{model.name} per-layer inverses"):
        weights = [w.float() for w in model.weights(model.select("xattn-kv")).values()]
        d = weights[0].shape[1]
        x, y = (text_rows(many, d, seed).to(bench.device) for seed in (0, 1))

        def per_layer() -> None:
            with torch.device(bench.device):  # it makes its identity matrix where the rest is
                for w in weights:
                    official_vectors(w, x, y, x[:0])

        found = bench.time(per_layer, n=1, warm=0)
        row = {**where(facts), "scope": "official schedule re-enacted", "dtype": "fp32"}
        bench.row(**row, what=f"UCE, {many} targets", mode="an inverse per layer, GPU", predicted="", **found)


def with_less(bench: Bench, model: StableDiffusion, facts: dict[str, Any], predicted: Mapping[str, str]) -> None:
    """Updates of AP under the settings that save memory, one after the other, each on top of those before it. Last of a section,
    because weights that are stored in eight bits stay so."""
    method = trained_methods(model.name)["AP, joint search"][0]
    steps: list[tuple[str, Callable[[], None]]] = [
        ("eager", lambda: None),
        ("checkpointing", lambda: model.configure(checkpointing=True)),
        ("checkpointing, encoders offloaded", lambda: model.place("offload")),
        ("checkpointing, encoders offloaded, fp8 storage", lambda: model.store("fp8")),
    ]
    for mode, change in steps:
        with bench.attempt(f"{model.name} AP, {mode}"):
            change()
            bench.empty()
            found = bench.updates(model, method, 5, 2)
            row = {**where(facts), "what": "AP, joint search, one update", "mode": mode, "predicted": predicted.get(mode, "")}
            bench.row(**row, **found, predicted_gib=predicted_memory(model, method))


def start(bench: Bench, name: str, dtype: torch.dtype) -> tuple[StableDiffusion, dict[str, Any]]:
    model = sized(name, dtype, bench.device, bench.smoke, 8 if bench.smoke else 2 * NAMES)  # half of them are not erased
    pixels = 8 * model.latent_shape[1]
    facts = {"dtype": "bf16" if dtype == BF16 else "fp32", "scope": "efface", "pixels": pixels}
    return model, {"model": name if model.part == "unet" else f"{name} {pixels} px", **facts}


def sd15(bench: Bench) -> None:
    model, facts = start(bench, "sd15", BF16)
    forward(bench, model, facts, "15-20 ms")
    bare_forwards(bench, model, facts, {"bare network": "15-20 ms", "CUDA graph": "6-8 ms"})
    official(bench, model, facts, updates(bench, model, facts, MAIN), n=3)
    sampling(bench, model, facts, batch=8, steps=20)
    closed_form(bench, model, facts)
    pool_filling(bench, model, facts)
    updates(bench, model, facts, MAIN[:2], modes=(True,))
    updates(bench, model, facts, [m for m in trained_methods(model.name) if m not in MAIN])


def sd15_fp32(bench: Bench) -> None:
    torch.set_float32_matmul_precision("high")  # TF32 products, as convolutions have by default
    try:
        model, facts = start(bench, "sd15", torch.float32)
        forward(bench, model, facts, mode="adapter, TF32")
        official(bench, model, facts, updates(bench, model, facts, MAIN), n=1)
        numerics(bench, model, facts)
    finally:
        torch.set_float32_matmul_precision("highest")


def gradients(model: StableDiffusion) -> dict[str, torch.Tensor]:
    """Of one update's loss at fixed latents and goals, per trained tensor."""
    select, rng = model.select(TRAIN[model.name]), torch.Generator().manual_seed(0)
    z, goals, t = model.noise(2, rng), model.noise(2, rng), torch.tensor([741, 741], device=model.device)
    student, c = model.student(select), model.encode([TARGET, model.concept_names[1]])
    weights = student.weights(select)
    for p in weights.values():
        p.requires_grad_(True)
    found = torch.autograd.grad((student.predict(z, t, c) - goals).square().mean(), list(weights.values()))
    return {n: g.float() for n, g in zip(weights, found, strict=True)}


def put_errors(
    bench: Bench, facts: dict[str, Any], mode: str, predicted: str, found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]
) -> None:
    """Item 12: the relative norm of the difference, per tensor."""
    off = sorted(float((found[n] - g).norm() / g.norm().clamp_min(1e-30)) for n, g in exact.items())
    told = f"relative error per tensor: median {off[len(off) // 2]:.2g}, worst {off[-1]:.2g}"
    row = {**where(facts), "what": "gradient of an update", "mode": mode, "predicted": predicted, "note": told}
    bench.row(**row, errors={"median": off[len(off) // 2], "worst": off[-1]})


def numerics(bench: Bench, model: StableDiffusion, facts: dict[str, Any]) -> None:
    """Item 12, against float32 without TF32."""

    def found(precision: str, autocast: str | None) -> dict[str, torch.Tensor]:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision == "high"
        model.configure(autocast=autocast)
        return gradients(model)

    exact = found("highest", None)
    for mode, autocast, predicted in (("TF32", None, ""), ("bf16 autocast", "bfloat16", "below 3e-2")):
        with bench.attempt(f"numerics {mode}"):
            put_errors(bench, facts, f"{mode}, against fp32", predicted, found("high", autocast), exact)
    model.configure()
    torch.backends.cudnn.allow_tf32 = True


def sdxl(bench: Bench) -> None:
    model, facts = start(bench, "sdxl", BF16)
    forward(bench, model, facts, "40-50 ms")
    bare_forwards(bench, model, facts, {"bare network": "40-50 ms"})
    official(bench, model, facts, updates(bench, model, facts, MAIN), n=1)
    closed_form(bench, model, facts, epochs=5)
    sampling(bench, model, facts, batch=1, steps=30)
    updates(bench, model, facts, MAIN[:2], modes=(True,))
    updates(bench, model, facts, [m for m in trained_methods(model.name) if m not in MAIN])


def sd15_settings(bench: Bench) -> None:
    """What changed since these cards were first measured: no autocast where all weights are half, and what saves memory."""
    model, facts = start(bench, "sd15", BF16)
    forward(bench, model, facts, "the bare network and at most 2 ms")
    bare_forwards(bench, model, facts, {}, variants=False)
    sampling(bench, model, facts, batch=8, steps=20)
    with_less(bench, model, facts, {"checkpointing, encoders offloaded, fp8 storage": "1.1-1.3 times slower, 1.0 GiB less"})


def sdxl_settings(bench: Bench) -> None:
    model, facts = start(bench, "sdxl", BF16)
    forward(bench, model, facts, "the bare network and at most 2 ms")
    bare_forwards(bench, model, facts, {}, variants=False)
    closed_form(bench, model, facts, official=False)
    sampling(bench, model, facts, batch=1, steps=30)
    with_less(bench, model, facts, {"checkpointing, encoders offloaded, fp8 storage": "1.1-1.3 times slower, 2.2 GiB less"})
