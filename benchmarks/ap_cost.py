"""What adversarial preservation costs: counted UNet evaluations per outer iteration, exact and pooled, and what each buys.

    python benchmarks/ap_cost.py [--quick] [--json]

Counts come from the model's own counter on the tiny model with 50 sampling steps, as on Stable Diffusion. "official" re-enacts
the evaluations that AP's official code spends, on this model and in the same run; its figures for whole runs, and those of the
codes of AGE and ESD, are the arithmetic of 1,000 of their iterations. The comparison erases the same targets from the miniature
with both samplers and evaluates both on the same cases; the plan methods-options compares all options.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from efface import verbs
from efface.concepts.request import EraseRequest
from efface.equations.statistics import mcnemar_midp, newcombe_paired
from efface.evaluation.aggregate import summarise
from efface.evaluation.records import read_rows
from efface.methods import AP
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.registry import build_method
from efface.training.loop import Run

OFFICIAL = {"ap": 213.84, "age": 213.84, "esd": 53.96}
"""Forward evaluations per outer iteration of the official codes at 50 sampling steps; their runs have 1,000 iterations."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ap, student": ("ap", {"sampler": "student", "eta": 1.0}),
    "ap, pool": ("ap", {"sampler": "pool", "eta": 1.0}),
    "ap, fast": ("ap", {**AP.presets["fast"], "eta": 1.0}),
    "age, student": ("age", {"sampler": "student"}),
    "age, pool": ("age", {"sampler": "pool", "sampler.trajectories": 1}),
    "esd, student": ("esd", {"sampler": "student"}),
    "esd, pool": ("esd", {"sampler": "pool"}),
}
CANDIDATES = 50


def official_iteration(model: DiffusionModel, k_theta: int, k_pi: int, steps: int) -> None:
    """The official AP schedule, spent on this model: both iterations run both trajectories and all five passes."""
    c, g = model.encode(["cat"]), torch.Generator().manual_seed(0)
    for k in (k_theta, k_pi):
        for _ in range(2):
            z, t = model.sample_until(c, k, steps, model.noise(1, g), 3.0, official=True)
        for _ in range(5):
            model.predict(z, t, c)


def official_esd_iteration(model: DiffusionModel, k: int, steps: int) -> None:
    """The official ESD schedule, spent on this model: one trajectory and three predictions."""
    c, g = model.encode(["cat"]), torch.Generator().manual_seed(0)
    z, t = model.sample_until(c, k, steps, model.noise(1, g), 3.0, official=True)
    for _ in range(3):
        model.predict(z, t, c)


def count(name: str, iterations: int) -> dict[str, float]:
    """Counted on the tiny model: evaluations per update, apart from filling a pool. Calculated from the documented cost, which
    the tests hold equal to the counted one: a run of 1,000 updates with 50 candidates."""
    model, (kind, settings) = load_model("tiny"), VARIANTS[name]
    nearest = {} if kind == "esd" else {"search.nearest": 4}
    method = build_method(kind, preset="paper", settings={**settings, **nearest, "steps": iterations})
    request = EraseRequest(("cat",))
    fill = dataclasses.replace(method, steps=0).erase(model, request).card.cost["forward"] if method.sampler.pooled else 0
    start = time.perf_counter()
    patch = method.erase(model, request)
    seconds = time.perf_counter() - start
    full = build_method(kind, preset="paper", settings={**settings, **({} if kind == "esd" else {"search.nearest": CANDIDATES})})
    total = full.expected_evals(load_model("mini"), EraseRequest(("dog",)))  # its names are the candidates; nothing is spent
    return {
        "per_iteration": (patch.card.cost["forward"] - fill) / iterations,
        "documented": (method.expected_evals(model, request) - fill) / iterations,
        "seconds_per_iteration": seconds / iterations,
        "full_run": total,
        "times_fewer": 1000 * OFFICIAL[kind] / total,
    }


def count_official(iterations: int) -> dict[str, float]:
    model, g = load_model("tiny"), torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for _ in range(iterations):
        k = torch.randint(50, (2,), generator=g).tolist()
        with torch.no_grad():
            official_iteration(model, k[0], k[1], 50)
    return {
        "per_iteration": model.evals.forward / iterations,
        "seconds_per_iteration": (time.perf_counter() - start) / iterations,
        "full_run": 1000 * OFFICIAL["ap"],
    }


def compare(target: str, steps: int | None, profile: str) -> dict[str, Any]:
    """Exact and pooled AP on the miniature, the same cases, paired."""
    model = load_model("mini")
    settings = {} if steps is None else {"steps": steps}
    patches, seconds = {}, {}
    for label, sampler in (("exact", "student"), ("pool", "pool")):
        start = time.perf_counter()
        patches[label] = verbs.erase(
            model, build_method("ap", preset="mini", settings={**settings, "sampler": sampler}), targets=[target], run=Run()
        )
        seconds[label] = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        others = [("pool", patches["pool"])]
        verbs.evaluate(model, patches["exact"], out=Path(folder) / "e", profile=profile, others=others, trivial=False)
        rows = read_rows(Path(folder) / "e")
    summary = summarise(rows)["entrants"]
    hits = {e: {r.case_id: r.hit for r in rows if r.entrant == e} for e in ("ap", "pool")}
    paired = {}
    for name, wanted in (("target", {"direct"}), ("kept", {"near", "trap", "far"})):
        ids = [r.case_id for r in rows if r.entrant == "none" and r.axis in wanted and r.hit]
        table = [(hits["ap"][i], hits["pool"][i]) for i in ids]
        counts = [table.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
        difference, low, high = newcombe_paired(*counts)
        paired[name] = {
            "exact_minus_pool": difference,
            "low": low,
            "high": high,
            "p_value": mcnemar_midp(counts[1], counts[2]),
            "n": len(ids),
        }
    return {
        "target": target,
        "evals": {k: p.card.cost["forward"] for k, p in patches.items()},
        "seconds": seconds,
        "scores": {"exact": summary["ap"]["scores"], "pool": summary["pool"]["scores"]},
        "detected_paired": paired,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer iterations, no comparison of images")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--target", action="append", help="targets of the comparison [fire engine, dog, palm tree]")
    parser.add_argument("--steps", type=int, help="weight updates of the comparison [the preset's]")
    args = parser.parse_args()
    iterations = 30 if args.quick else 200
    result: dict[str, Any] = {
        "iterations": iterations,
        "official": count_official(iterations),
        "official_documented": OFFICIAL,
        **{name: count(name, iterations) for name in VARIANTS},
    }
    result["comparison"] = (
        [] if args.quick else [compare(t, args.steps, "mini-lite") for t in args.target or ["fire engine", "dog", "palm tree"]]
    )
    if args.json:
        print(json.dumps(result))
        return
    print(f"UNet evaluations per update over {iterations} updates at 50 sampling steps, and of a run of 1,000 updates")
    for name in ("official", *VARIANTS):
        r = result[name]
        ratio = result["official"]["seconds_per_iteration"] / r["seconds_per_iteration"]
        fewer = f"   {r['times_fewer']:5.1f} x fewer than the official code" if "times_fewer" in r else ""
        print(
            f"  {name:<13}{r['per_iteration']:8.2f}   {ratio:6.1f} x the speed of the official AP schedule"
            f"   run {r['full_run']:>9,.0f}{fewer}"
        )
    for c in result["comparison"]:
        print(f"{c['target']}: evaluations {c['evals']}, scores {c['scores']}")
        for name, d in c["detected_paired"].items():
            print(
                f"  {name}: exact - pool = {d['exact_minus_pool']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}], "
                f"p = {d['p_value']:.3f}, n = {d['n']}"
            )


if __name__ == "__main__":
    main()
