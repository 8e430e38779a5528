"""What a closed-form edit costs and how exact it is: the official sequence of operations against ours, on true-size weights.

    python benchmarks/closed_form.py [--quick] [--json] [--concepts 1 10 100 1000] [--docs FILE]

Both sides run in this process, on the same threads, on random weights of Stable Diffusion 1.4's 32 key and value matrices (or
SDXL's 140) and random rows with the norm and decaying spectrum of text embeddings; encoding texts and drawing images is left
out on both sides. "official" is our own re-enactment of what the official codes do, in their order and in float32, not a run of
those codes. It is timed on one matrix of every size, for one concept where it works concept by concept, and multiplied by the
number of matrices and concepts: that is what "extrapolated" means. Ours is always run in full, from rows to all edited
weights. Errors are relative errors of W' against a float64 solution of the same system by LU, on one matrix of every size; the
official side's are of the same float32 sums formed by matrix products, which is at least as exact as its own loops. RECE's are
against extended precision at width 192: its float64 recursion is not exact enough to judge by.
Seconds are CPU seconds of this process, the fastest of ``--repeat`` runs for ours.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import into_page, lines_of, sheet, sources
from torch import Tensor

from efface.equations.closed_form import F64, Moments, edited, factored, fused, gram_of_maps, shared_edit, solved
from efface.methods import RECE

SD = {320: 10, 640: 10, 1280: 12}  # out dimension -> number of key and value matrices
SDXL = {640: 20, 1280: 120}
LENGTH, LAM = 77, 0.5


class Timer:
    """CPU seconds of a block."""

    def __enter__(self) -> Timer:
        self.start = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self.start


def peak_of(work: Callable[[], Any]) -> tuple[Any, float | None]:
    """Result and additional peak memory in MB; None where the system does not tell (only Linux does)."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
        before = _megabytes(status, "VmRSS")
    except (OSError, StopIteration):
        return work(), None
    result = work()
    return result, max(0.0, _megabytes(status, "VmHWM") - before)


def _megabytes(status: Path, key: str) -> float:
    return int(next(line for line in status.read_text().splitlines() if line.startswith(key)).split()[1]) / 1024


def seconds_of(work: Callable[[], Any], repeat: int = 1) -> float:
    fastest = float("inf")
    for _ in range(repeat):
        with Timer() as timer:
            work()
        fastest = min(fastest, timer.seconds)
    return fastest


def text_rows(n: int, d: int, seed: int) -> Tensor:
    """(n, d) float32 of norm about 27, with a spectrum that falls as 1 / sqrt(k) in a random basis, as CLIP's roughly does."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, d + 1) ** -0.5
    rows = torch.randn(n, d, generator=rng) * scale
    mixed = rows[:, torch.randperm(d, generator=torch.Generator().manual_seed(0))]
    return mixed * (27 / scale.norm())


def layers(sizes: dict[int, int], d: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(out, d, generator=rng) / d**0.5 for out, count in sizes.items() for _ in range(count)]


# -- the official sequences, re-enacted in float32, per matrix ----------------------------------------------------


def official_vectors(w: Tensor, x: Tensor, y: Tensor, q: Tensor) -> Tensor:
    """UCE 2025: outer products vector by vector, then an inverse."""
    left, right = LAM * w, LAM * torch.eye(w.shape[1])
    for source, goal in [*zip(x, y, strict=True), *zip(q, q, strict=True)]:
        left += 1.0 * ((w @ goal)[:, None] @ source[None])
        right += 1.0 * (source[:, None] @ source[None])
    return left @ torch.inverse(right)


def official_text(w: Tensor, x: Tensor, y: Tensor, every: list[Tensor]) -> None:
    """UCE 2023 and RECE, one text and one matrix: the rows go through all 32 matrices, of which one result is used, and the
    outer products of all rows are formed before they are summed."""
    through_all = [y @ v.T for v in every]
    values = next(v for v in through_all if v.shape[1] == len(w))
    (values[:, :, None] @ x[:, None, :]).sum(0)
    (x[:, :, None] @ x[:, None, :]).sum(0)


def official_rows(w: Tensor, x: Tensor, y: Tensor) -> None:
    """TIME, one sentence and one matrix: outer products of all rows before the sum."""
    values = y @ w.T
    (values[:, :, None] @ x[:, None, :]).sum(0)
    (x[:, :, None] @ x[:, None, :]).sum(0)


def official_products(w: Tensor, x: Tensor, y: Tensor) -> None:
    """MACE, one concept and one matrix: 30 prompts side by side, one product per token position, then the sum over positions;
    the second one, the Gram matrix, is the same for all 32."""
    source, goal = (v.reshape(30, -1, v.shape[1]).permute(1, 2, 0) for v in (x, y @ w.T))
    torch.bmm(goal, source.transpose(1, 2)).sum(0)
    torch.bmm(source, source.transpose(1, 2)).sum(0)


def official_derivation(every: list[Tensor], rows: Tensor, ridge: float) -> None:
    """RECE, one concept and epoch: both sums over all matrices anew, on copies, although no concept appears in them."""
    old, new = [w.clone() for w in every], [w.clone() for w in every]
    d = every[0].shape[1]
    left, right = torch.zeros(d, d), ridge * torch.eye(d)
    for a, b in zip(new, old, strict=True):
        right += a.T @ a
        left += a.T @ b
    _ = rows @ (torch.inverse(right) @ left).T


def per_size(sizes: dict[int, int], every: list[Tensor], work: Callable[[Tensor], Any]) -> float:
    """Seconds for all matrices from one of each size."""
    return sum(count * seconds_of(lambda out=out: work(next(w for w in every if len(w) == out))) for out, count in sizes.items())


# -- accuracy -----------------------------------------------------------------------------------------------------


def error(found: Tensor, reference: Tensor) -> float:
    return float((found.double() - reference).norm() / reference.norm())


def reference_of(w: Tensor, m: Moments, lam: float) -> Tensor:
    """Per layer and by LU, in float64: W (lam I + sum y x^T + keep)(lam I + sum x x^T + keep)^-1."""
    eye = torch.eye(w.shape[1], dtype=F64)
    left, right = lam * eye + m.shift + m.gram + m.keep, lam * eye + m.gram + m.keep
    return torch.linalg.solve(right, (w.double() @ left).T).T


def float32_of(w: Tensor, x: Tensor, y: Tensor, a: Tensor, q: Tensor, b: Tensor, lam: float) -> Tensor:
    left = lam * w + ((w @ y.T) * a) @ x + ((w @ q.T) * b) @ q
    right = lam * torch.eye(w.shape[1]) + (x.T * a) @ x + (q.T * b) @ q
    return left @ torch.inverse(right)


def errors(every: list[Tensor], x: Tensor, y: Tensor, a: Tensor, q: Tensor, b: Tensor, lam: float) -> dict[str, float]:
    """Worst relative error of W' over one matrix of every size."""
    m, edit = Moments.of(x, y, a, q, b), shared_edit(x, y, a, q, b, lam)
    chosen = {len(w): w for w in every}.values()
    references = [reference_of(w, m, lam) for w in chosen]
    ours = [error(edited(w, edit), r) for w, r in zip(chosen, references, strict=True)]
    theirs = [error(float32_of(w, x, y, a, q, b, lam), r) for w, r in zip(chosen, references, strict=True)]
    return {"ours": max(ours), "official": max(theirs), "condition": edit.condition}


# -- cases --------------------------------------------------------------------------------------------------------


def case(n: int, official: float, work: Callable[[], Any], flops: float, repeat: int, **more: Any) -> dict[str, Any]:
    with Timer() as first:
        _, peak = peak_of(work)
    ours = min([first.seconds, *(seconds_of(work) for _ in range(repeat - 1))])
    return {
        "concepts": n, "official_seconds": official, "ours_seconds": ours, "ratio": official / ours, "ours_gflop": flops / 1e9,
        "ours_peak_mb": peak, **more,
    }  # fmt: skip


def edited_all(every: list[Tensor], edit: Any) -> list[Tensor]:
    return [edited(w, edit) for w in every]


def uce_2025(every: list[Tensor], n: int, repeat: int) -> dict[str, Any]:
    d, ones, outs = every[0].shape[1], torch.ones(n), sum(map(len, every))
    x, y, q = (text_rows(n, d, s) for s in (2, 3, 4))
    official = per_size(SD, every, lambda w: official_vectors(w, x, y, q))
    low = 2 * n < d
    flops = (4 * n * n * d * 2 if 4 * n < d else d**3 / 3 + 2 * d * d * n * 2) + (4 * outs * d * n if low else 2 * outs * d * d)
    return case(
        n, official, lambda: edited_all(every, shared_edit(x, y, ones, q, ones, LAM)), flops, repeat,
        extrapolated="over matrices", **{"error": errors(every, x, y, ones, q, ones, LAM)},
    )  # fmt: skip


def uce_2023(every: list[Tensor], n: int, repeat: int) -> dict[str, Any]:
    """77 rows per concept are erased and 77 rows of the null prompt preserved."""
    d, r, outs = every[0].shape[1], LENGTH * n, sum(map(len, every))
    x, y, q = text_rows(r, d, 2), text_rows(LENGTH, d, 3).repeat(n, 1), text_rows(LENGTH, d, 4)
    a, b = torch.ones(r), torch.full((LENGTH,), 0.1)
    one = per_size(SD, every, lambda w: official_text(w, x[:LENGTH], y[:LENGTH], every))
    inverses = per_size(SD, every, lambda w: w @ torch.inverse(LAM * torch.eye(d) + x[:d].T @ x[:d]))
    flops = 0.625 * 2 * d * d * r + d**3 / 3 + 2 * d**3 + 2 * outs * d * d
    return case(
        n, one * (n + 1) + inverses, lambda: edited_all(every, shared_edit(x, y, a, q, b, LAM)), flops, repeat,
        extrapolated="over matrices and concepts", error=errors(every, x, y, a, q, b, LAM),
    )  # fmt: skip


def rece(every: list[Tensor], n: int, repeat: int) -> dict[str, Any]:
    """Three epochs on top of a first edit; the null prompt preserved."""
    d, r, outs = every[0].shape[1], LENGTH * n, sum(map(len, every))
    x, y, q = text_rows(r, d, 2), text_rows(LENGTH, d, 3).repeat(n, 1), text_rows(LENGTH, d, 4)
    method = RECE(epochs=3)
    derive = seconds_of(lambda: official_derivation(every, x[:LENGTH], 0.1))
    one = per_size(SD, every, lambda w: official_text(w, x[:LENGTH], y[:LENGTH], every))
    inverses = per_size(SD, every, lambda w: w @ torch.inverse(LAM * torch.eye(d) + x[:d].T @ x[:d]))
    first = shared_edit(x, y, torch.ones(r), q, torch.ones(LENGTH), LAM).transform
    words = x[:1].double(), y[:1].double()

    def ours(s: Tensor | None = None) -> list[Tensor]:
        rows = Moments.of(x, y, torch.ones(r), q, torch.full((LENGTH,), 0.1))
        goals = y[:LENGTH].double()
        edit, _ = method.rounds(gram_of_maps(every) if s is None else s, first, rows, n * goals.T @ goals, None, words)
        return edited_all(every, edit)

    s = gram_of_maps(every)
    flops = 0.625 * 2 * d * d * (outs + r) + 3 * 10 * 2 * d**3 + 2 * outs * d * d
    official = 3 * (n * derive + (n + 1) * one + inverses)
    cached = seconds_of(lambda: ours(s), repeat)
    return case(
        n, official, ours, flops, repeat, extrapolated="over matrices, concepts and epochs", ours_seconds_with_s_cached=cached,
        error=rece_errors(n) if repeat > 1 and n <= 100 else None,
    )  # fmt: skip


def rece_errors(n: int, d: int = 192) -> dict[str, float]:
    """RECE's recursion run on weights, layer by layer, in extended precision (80 bits): how far off are ours, the same recursion
    in float64 with LU, and that in float32 with inverses, as the official code has it.

    At width ``d`` with a matrix of every size and 77 rows per concept, because extended precision has no fast products. A float64
    recursion cannot be the reference: the condition numbers of its systems multiply from epoch to epoch, and grow with the width.
    condition: of the worst system.
    """
    every = layers(dict.fromkeys((5 * d // 12, 5 * d // 6, 5 * d // 3), 1), d)
    x, y, q = text_rows(LENGTH * n, d, 2), text_rows(LENGTH, d, 3).repeat(n, 1), text_rows(LENGTH, d, 4)
    conditions: list[float] = []

    def recursion(kind: Any, solve: Callable[[Any, Any], Any]) -> list[Any]:
        eye, rows, goals, kept = np.eye(d, dtype=kind), *(v.numpy().astype(kind) for v in (x, y, q))
        old = [w.numpy().astype(kind) for w in every]
        now, derived, weight, lam = old, rows, kind(1), kind(LAM)
        for epoch in range(4):  # the first edit, then three epochs
            if epoch:
                system = kind(0.1) * eye + sum(w.T @ w for w in now)
                cross = sum(a.T @ b for a, b in zip(now, old, strict=True))
                derived, weight, lam = rows @ solve(system, cross).T, kind(0.1), kind(0.1)
            keep = lam * eye + weight * kept.T @ kept
            left, right = keep + goals.T @ derived, keep + derived.T @ derived
            conditions.append(float(np.linalg.cond(right.astype(np.float64))))
            now = [solve(right, (w @ left).T).T for w in now]
        return now

    exact = recursion(np.longdouble, _eliminated)
    condition = max(conditions)
    double = recursion(np.float64, np.linalg.solve)
    single = recursion(np.float32, lambda a, b: np.linalg.inv(a) @ b)
    ones, goals = torch.ones(len(x)), y[:LENGTH].double()
    first = shared_edit(x, y, ones, q, torch.ones(LENGTH), LAM).transform
    rows = Moments.of(x, y, ones, q, torch.full((LENGTH,), 0.1))
    words = x[:1].double(), y[:1].double()
    edit, _ = RECE(epochs=3).rounds(gram_of_maps(every), first, rows, n * goals.T @ goals, None, words)

    def worst(found: list[Any]) -> float:
        pairs = zip(found, exact, strict=True)
        return max(float(np.sqrt(((a.astype(np.longdouble) - b) ** 2).sum() / (b**2).sum())) for a, b in pairs)

    ours = worst([w.numpy() for w in edited_all(every, edit)])
    return {"ours": ours, "official": worst(single), "float64": worst(double), "condition": condition, "width": d}


def _eliminated(a: Any, b: Any) -> Any:
    """Solution of a X = b by elimination with pivots, in whatever precision: LAPACK has none beyond float64."""
    a, b = a.copy(), b.copy()
    for k in range(len(a)):
        pivot = k + int(np.argmax(abs(a[k:, k])))
        a[[k, pivot]], b[[k, pivot]] = a[[pivot, k]], b[[pivot, k]]
        factor = (a[k + 1 :, k] / a[k, k])[:, None]
        a[k + 1 :] -= factor * a[k]
        b[k + 1 :] -= factor * b[k]
    found = np.zeros_like(b)
    for k in reversed(range(len(a))):
        found[k] = (b[k] - a[k, k + 1 :] @ found[k + 1 :]) / a[k, k]
    return found


def time_edit(every: list[Tensor], repeat: int) -> dict[str, Any]:
    d, r, outs = every[0].shape[1], 4 * LENGTH, sum(map(len, every))
    x, y = text_rows(r, d, 2), text_rows(r, d, 3)
    a, none = torch.ones(r), torch.zeros(0)
    one = per_size(SD, every, lambda w: official_rows(w, x[:LENGTH], y[:LENGTH]))
    inverses = per_size(SD, every, lambda w: w @ torch.inverse(0.1 * torch.eye(d) + x.T @ x))
    flops = 2 * r * r * d + r**3 / 3 + 4 * outs * d * r
    return case(
        1, 4 * one + inverses, lambda: edited_all(every, shared_edit(x, y, a, x[:0], none, 0.1)), flops, repeat,
        extrapolated="over matrices and sentences", error=errors(every, x, y, a, x[:0], none, 0.1),
    )  # fmt: skip


def mace(every: list[Tensor], n: int, repeat: int) -> dict[str, Any]:
    """Refinement with 30 templates of 75 rows per concept; the prior is one shipped Gram matrix on both sides."""
    d, r, outs = every[0].shape[1], 30 * 75, sum(map(len, every))
    goals = text_rows(r, d, 5000)  # one anchor for all concepts
    blocks = [(text_rows(r, d, 10 + i), goals) for i in range(min(n, 4))]
    prior, a, none = 1e-4 * text_rows(5000, d, 4).double(), torch.ones(r), torch.zeros(0, d)
    keep = prior.T @ prior
    one = per_size(SD, every, lambda w: official_products(w, *blocks[0]))
    inverses = per_size(SD, every, lambda w: w @ torch.inverse(torch.eye(d) + blocks[0][0].T @ blocks[0][0]))

    x, y = (torch.cat([blocks[i % len(blocks)][k] for i in range(n)]) for k in (0, 1))

    def ours() -> list[Tensor]:
        erased = Moments.of(x, y, torch.ones(len(x)), none, none[:, 0])
        return edited_all(every, solved(Moments(erased.gram, erased.shift, keep), 10.0))

    flops = (0.625 * n + 1) * 2 * d * d * r + d**3 / 3 + 2 * d**3 + 2 * outs * d * d
    found = errors(every, *blocks[0], a, none, none[:, 0], 10.0)
    return case(n, n * one + inverses, ours, flops, repeat, extrapolated="over matrices and concepts", error=found)


def fusion(every: list[Tensor], n: int, repeat: int) -> dict[str, Any]:
    """n rank-1 adapters per matrix merged. The concepts' Gram matrices come from the refinement, which needed them."""
    d, r, outs = every[0].shape[1], 30 * LENGTH, sum(map(len, every))
    rows = [text_rows(r, d, 10 + i) for i in range(min(n, 4))]
    distinct = torch.stack([x.double().T @ x.double() for x in rows])
    grams = distinct[[i % len(rows) for i in range(n)]]
    rng = torch.Generator().manual_seed(5)
    ups = {len(w): torch.randn(n, len(w), 1, generator=rng, dtype=F64) for w in every}
    downs = torch.randn(n, 1, d, generator=rng, dtype=F64)
    one = per_size(SD, every, lambda w: official_products(w, rows[0], rows[0]))
    inverses = per_size(SD, every, lambda w: w @ torch.inverse(torch.eye(d) + rows[0].T @ rows[0]))

    def ours() -> list[Tensor]:
        lower, _ = factored(grams.sum(0) + 10.0 * torch.eye(d, dtype=F64))
        return [w + fused(ups[len(w)], downs, grams, lower).float() for w in every]

    flops = d**3 / 3 + len(every) * 4 * n * d * d + 2 * outs * n * d
    w, g = every[0], grams.sum(0) + 10.0 * torch.eye(d, dtype=F64)
    merged = (ups[len(w)][:, :, 0].T @ (downs @ grams)[:, 0]) + w.double() @ g  # sum (W + up down) G_i + lam W
    reference = torch.linalg.solve(g, merged.T).T
    found = {"ours": error(ours()[0], reference), "official": error(merged.float() @ torch.inverse(g.float()), reference)}
    return case(n, n * one + inverses, ours, flops, repeat, extrapolated="over matrices and concepts", error=found)


def sdxl(n: int, repeat: int) -> dict[str, Any]:
    """Rank-n edit of all 140 matrices at width 2048, one preserved row per erased one."""
    d = 2048
    pair = [torch.randn(out, d, generator=torch.Generator().manual_seed(out)) / d**0.5 for out in SDXL]
    x, y, q = (text_rows(n, d, s) for s in (2, 3, 4))
    ones = torch.ones(n)
    official = per_size(SDXL, pair, lambda w: official_vectors(w, x, y, q))

    def ours() -> None:
        edit = shared_edit(x, y, ones, q, ones, LAM)
        for w, count in zip(pair, SDXL.values(), strict=True):
            for _ in range(count):
                edited(w, edit)

    outs = sum(out * count for out, count in SDXL.items())
    flops = 4 * n * n * d * 2 + 4 * outs * d * n
    return case(n, official, ours, flops, repeat, extrapolated="over matrices", error=errors(pair, x, y, ones, q, ones, LAM))


def small_ridge(every: list[Tensor]) -> dict[str, dict[str, float]]:
    """Where float32 loses most: the settings of the official codes with little ridge or little prior."""
    d = every[0].shape[1]
    x, y, none = text_rows(4 * LENGTH, d, 2), text_rows(4 * LENGTH, d, 3), torch.zeros(0)
    rows, goals, prior = text_rows(300, d, 5), text_rows(300, d, 6), text_rows(5000, d, 4)
    some = torch.ones(300)
    return {
        "TIME, 4 x 77 rows, lam 0.1": errors(every, x, y, torch.ones(len(x)), x[:0], none, 0.1),
        "RECE edit, 77 rows of length 1, lam 0.1": errors(every, x[:77] / 27, y[:77], torch.ones(77), x[:0], none, 0.1),
        "MACE, 300 rows, lam 0, prior weight 1e-4": errors(every, rows, goals, some, prior, torch.full((5000,), 1e-4), 0.0),
        "MACE, 300 rows, lam 0, prior weight 1e-8": errors(every, rows, goals, some, prior, torch.full((5000,), 1e-8), 0.0),
    }


def run(counts: list[int], repeat: int, with_rest: bool) -> dict[str, Any]:
    every = layers(SD, 768)
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "cases": {}}
    for name, work in (("UCE 2025", uce_2025), ("UCE 2023", uce_2023), ("RECE, 3 epochs", rece)):
        result["cases"][name] = [work(every, n, repeat) for n in counts]
    result["cases"]["TIME, 4 sentences"] = [time_edit(every, repeat)]
    for name, work in (("MACE refinement", mace), ("MACE fusion", fusion)):
        result["cases"][name] = [work(every, n, repeat) for n in counts if n <= 100]
    if with_rest:
        result["cases"]["SDXL"] = [sdxl(n, 1) for n in counts if n <= 100]
    result["small_ridge"] = small_ridge(every) if with_rest else {}
    return result


def markdown(result: dict[str, Any], page: Path | None = None) -> str:
    """Two small tables; ``page``: where they are put, which then links the CSV file of :func:`sheets`."""
    body = []
    for name, cases in result["cases"].items():
        for c in cases:
            e, times = c["error"], (f"{c['official_seconds']:,.1f}", f"{c['ours_seconds']:.2f}", f"{c['ratio']:,.0f}")
            found = (f"{e['official']:.1e}", f"{e['ours']:.1e}") if e else ("not measured", "not measured")
            body.append([name, f"{c['concepts']:,}", *times, *found])
    lines = [
        "This table shows processor seconds of the official sequence of operations and of ours, their ratio, and the "
        "relative error of "
        "the edited weights.",
        "",
        *lines_of(["edit", "concepts", "official, CPU s", "ours, CPU s", "ratio", "error official", "error ours"], body),
        "",
        *sources(page, "bench", {"": "all columns"}, "Floating-point operations and peak memory"),
    ]
    if result["small_ridge"]:
        lines += [
            "This table shows the relative errors for the settings of the official codes in which float32 loses most.",
            "",
            *lines_of(
                ["setting", "condition", "error official", "error ours"],
                [[n, *(f"{e[k]:.1e}" for k in ("condition", "official", "ours"))] for n, e in result["small_ridge"].items()],
            ),
        ]
    return "\n".join(lines) + "\n"


def sheets(result: dict[str, Any]) -> dict[str, str]:
    """The CSV file behind the first table."""
    body = []
    for name, cases in result["cases"].items():
        for c in cases:
            e, peak = c["error"], c["ours_peak_mb"]
            body.append(
                [
                    name,
                    str(c["concepts"]),
                    f"{c['official_seconds']:.1f}",
                    f"{c['ours_seconds']:.2f}",
                    f"{c['ratio']:.0f}",
                    f"{c['ours_gflop']:.0f}",
                    "" if peak is None else f"{peak:.0f}",
                    *((f"{e['official']:.1e}", f"{e['ours']:.1e}") if e else ("", "")),
                ]
            )
    head = [
        "edit",
        "concepts",
        "official_cpu_s",
        "ours_cpu_s",
        "ratio",
        "ours_gflop",
        "ours_peak_mb",
        "error_official",
        "error_ours",
    ]
    return {"": sheet(head, body)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: 1 concept, without SDXL and small ridges")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--concepts", nargs="+", type=int, default=[1, 10, 100, 1000])
    parser.add_argument("--repeat", type=int, default=2, help="runs of ours, of which the fastest counts")
    parser.add_argument("--docs", type=Path, help="put the tables between the page's markers")
    args = parser.parse_args()
    result = run([1], 1, False) if args.quick else run(args.concepts, args.repeat, True)
    if args.docs:
        into_page(args.docs, "bench", markdown(result, args.docs), sheets(result))
    print(json.dumps(result) if args.json else markdown(result))


if __name__ == "__main__":
    main()
