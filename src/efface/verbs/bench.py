"""Run a plan: many erasures, evaluations and attacks, each once, on one machine or many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..concepts.request import names_of
from ..equations.statistics import wilson
from ..errors import BadOption, UnknownName
from ..io.files import check_writable, claimed
from ..plans.cells import Cell, Schedule
from ..plans.executors import LOCAL, NAMES, RAY, SLURM, Executor
from ..plans.executors.local import Processes, in_this_process
from ..plans.job import Job, Outcome
from ..plans.plan import Plan, read_plan, smaller
from ..plans.records import FINISHED, Store
from ..versions import versions
from .cost import duration, seconds_per_eval
from .performed import one_thread, perform
from .planned import Expanded, expand, loaded

FLOORS = (24, 4)
"""A budget never leaves fewer images per evaluation, nor fewer attacked cases, than these, where the plan has as many."""
PROBED = 32
"""Rows of the batch with which the time of an evaluation is measured: about as many as images are drawn together."""


def bench(
    plan: Plan | str | Path,
    *,
    out: str | Path,
    executor: str = LOCAL,
    workers: int = 1,
    ray_address: str = "",
    budget: float | None = None,
    dry_run: bool = False,
    only: Sequence[str] = (),
    on_cell: Callable[[int, int, str], None] = lambda done, total, told: None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run every cell of a plan that is not finished in ``out``, and return what was done.

    A cell is one erasure, one evaluation of one entrant, or one attack on it. What a cell gives depends on its inputs alone, so a
    finished one is never computed again, two plans may share a folder, and it does not matter who computes it. A cell that fails
    is recorded with its error, does not stop the others, and is tried again by the next start.

    ``plan``: a :class:`~efface.plans.plan.Plan` or its TOML file, see docs/bench.md. ``executor``: ``local`` (``workers``
    processes on this machine), ``ray`` (``workers`` cells at a time on a cluster: the one at ``ray_address``, or a local one) or
    ``slurm-script`` (writes scripts to ``out``/slurm and runs nothing). ``budget``: seconds that the whole plan may take by the
    measured time of an evaluation; images and attacked cases are scaled down for it, and the same plan with the same budget keeps
    the numbers that its first start chose. ``dry_run``: say what would be done, and keep nothing. ``only``: keys of the cells to
    run, whose needs must be finished.
    Returns ``cells``, ``finished``, ``ran``, ``failed`` (key -> error) and ``left_out``. Raises UsageError for a plan or a budget
    that cannot be run, before anything is computed, and BadFile where ``out`` cannot be written. Cost: as announced by ``note``.

    >>> import efface
    >>> plan = '''
    ... targets = ["rabbit"]
    ... profile = {steps = 3, guidance = 4.0, cases = {direct = 4, near = 4}}
    ... [entrants.uce]
    ... method = "uce"
    ... '''
    >>> from pathlib import Path
    >>> _ = Path("plan.toml").write_text(plan)
    >>> done = efface.bench("plan.toml", out="bench")
    >>> done["cells"], done["finished"], done["failed"]  # the unmodified model, the erasure, its evaluation
    (3, 3, {})
    >>> efface.bench("plan.toml", out="bench")["ran"]  # finished cells are not computed again
    0

    """
    only = names_of(only, "only")
    if executor not in NAMES:
        raise UnknownName("executor", executor, NAMES)
    if workers < 1:
        raise BadOption(f"{workers} workers: give 1 or more.")
    if ray_address and executor != RAY:
        raise BadOption("--ray-address is for --executor ray; leave it out.")
    if executor == SLURM and isinstance(plan, Plan):
        raise BadOption("scripts for Slurm call efface bench with the file of the plan: give the path of one.")
    path, plan = (Path("."), plan) if isinstance(plan, Plan) else (Path(plan), read_plan(plan))
    store = Store(out)
    if not dry_run:
        check_writable(store.folder)
    found = expand(plan)
    kept = {k: r for k, r in store.records().items() if r["status"] == FINISHED}
    with one_thread():
        speed = {m: seconds_per_eval(loaded(m, *plan.loading), PROBED) for m in plan.models}
    told_budget = ""
    if budget is not None:
        found, told_budget = _within(found, budget, _kept_scale(store, plan, budget), speed, workers)
    _announce(note, found, kept, store, speed, workers, told_budget)
    if dry_run:
        return _summary(found, kept, Schedule(found.cells, kept), 0)
    chosen = _chosen(found.cells, only, kept)
    # Tasks of an array job write beside each other, each to files of its own.
    with claimed(store.folder) if not only and executor != SLURM else nullcontext():
        store.folder.mkdir(parents=True, exist_ok=True)
        if not only:
            store.keep_plan(plan.name, _manifest(found, plan, budget))
        if executor == SLURM:
            from ..plans.executors.slurm import write_scripts

            script = write_scripts(store, path, budget, chosen, kept, gpu=_gpus(plan) > 0)
            return {**_summary(found, kept, Schedule(chosen, kept), 0), "script": str(script)}
        schedule = Schedule(chosen, _usable(chosen, kept, store))
        ran = 0

        def settled(cell: Cell, outcome: Outcome) -> None:
            nonlocal ran
            ran += 1
            on_cell(schedule.done, schedule.total, f"{cell.told}: {outcome.error}" if outcome.error else cell.told)

        _executor(executor, workers, ray_address, plan)(schedule, Job(store.folder.resolve(), perform), settled)
    after = {k: r for k, r in store.records().items() if r["status"] == FINISHED}
    return _summary(found, after, schedule, ran)


def _executor(name: str, workers: int, ray_address: str, plan: Plan) -> Executor:
    if name == RAY:
        from ..plans.executors.ray import Cluster

        return Cluster(workers, ray_address, _gpus(plan))
    return in_this_process if workers == 1 else Processes(workers)


def _gpus(plan: Plan) -> int:
    """GPUs that one cell takes."""
    return int(any(loaded(m, *plan.loading).device.type == "cuda" for m in plan.models))


def _usable(cells: Sequence[Cell], kept: dict[str, Any], store: Store) -> set[str]:
    """The finished cells, without erasures whose patch is gone although a cell that is not finished needs it."""
    wanted = {need for c in cells if c.key not in kept for need in c.needs}
    lost = {c.key for c in cells if c.kind == "erase" and c.key in wanted and not store.patch(c.key).is_file()}
    return {*kept} - lost


def _chosen(cells: Sequence[Cell], only: Sequence[str], kept: dict[str, Any]) -> list[Cell]:
    """All cells, or those asked for. Raises BadOption for a key that is none, and for one whose needs are not finished."""
    if not only:
        return list(cells)
    by_key = {c.key: c for c in cells}
    for key in only:
        if key not in by_key:
            raise BadOption(f"the plan has no cell {key!r}; it may have been changed since its cells were written down.")
        for need in by_key[key].needs:
            if need not in kept and need not in only:
                raise BadOption(f"cell {key} ({by_key[key].told}) needs {need} ({by_key[need].told}), which is not finished.")
    return [by_key[key] for key in only]


def _summary(found: Expanded, kept: dict[str, Any], schedule: Schedule, ran: int) -> dict[str, Any]:
    return {
        "plan": found.plan.name,
        "cells": len(found.cells),
        "finished": sum(c.key in kept for c in found.cells),
        "ran": ran,
        "failed": dict(schedule.failed),
        "left_out": found.left_out,
    }


def _manifest(found: Expanded, plan: Plan, budget: float | None) -> dict[str, Any]:
    """What the folder keeps of a plan: the places of its cells, from which every table is made."""
    reduced = found.plan
    return {
        "name": plan.name,
        "digest": plan.digest(),
        "budget": budget,
        "plan": {k: v for k, v in asdict(reduced).items() if k != "folder"},
        "models": found.models,
        "places": [asdict(p) for p in found.places],
        "told": {c.key: c.told for c in found.cells},
        "left_out": found.left_out,
        "versions": versions(),
    }


# -- budget ------------------------------------------------------------------------------------------------------------


def _kept_scale(store: Store, plan: Plan, budget: float) -> Plan | None:
    """The plan as an earlier start with the same budget made it smaller: another measured speed must not make other cells."""
    path = store.manifest(plan.name)
    if not path.is_file():
        return None
    earlier = next((m for m in store.plans() if m["name"] == plan.name), None)
    if earlier is None or earlier["digest"] != plan.digest() or earlier["budget"] != budget:
        return None
    kept = earlier["plan"]
    attacks = tuple(replace(a, cases=b["cases"]) for a, b in zip(plan.attacks, kept["attacks"], strict=True))
    return replace(
        plan,
        profile=replace(plan.profile, cases=kept["profile"]["cases"]),
        curve=replace(plan.curve, cases=kept["curve"]["cases"]),
        attacks=attacks,
    )


def _within(found: Expanded, budget: float, earlier: Plan | None, speed: dict[str, float], workers: int) -> tuple[Expanded, str]:
    """The plan made small enough for the budget. Raises BadOption for a budget that not even the floors keep."""
    if budget <= 0:
        raise BadOption(f"a budget of {budget:g} seconds is none; write --budget 30min.")
    if earlier is not None:
        return expand(earlier), "the numbers of cases are those that the first start with this budget chose"
    whole, factor, tried = found, 1.0, found
    for _ in range(6):
        _, most = _seconds(tried, (), speed, workers)
        if most <= budget:
            break
        fixed = _seconds(tried, (), speed, workers, ("erase",))[1]
        factor *= max(0.0, budget - fixed) / max(most - fixed, 1e-9) * 0.98
        tried = expand(smaller(whole.plan, factor, *FLOORS))
    else:
        tried = expand(smaller(whole.plan, 0.0, *FLOORS))
    _, most = _seconds(tried, (), speed, workers)
    if most > budget:
        raise BadOption(
            f"the budget of {duration(budget, budget).removeprefix('about ')} is too small: with the fewest cases "
            f"({FLOORS[0]} images per evaluation, {FLOORS[1]} attacked cases) the plan takes up to "
            f"{duration(most, most).removeprefix('about ')}. Raise --budget, or take targets, seeds or entrants out of the plan."
        )
    if tried is whole:
        return whole, "the whole plan fits"
    images = sum(tried.plan.profile.cases.values()), sum(whole.plan.profile.cases.values())
    attacked = "; ".join(
        f"{a.label} {a.cases} of {b.cases} cases" for a, b in zip(tried.plan.attacks, whole.plan.attacks, strict=True)
    )
    told = f"it leaves {images[0]} of {images[1]} images per evaluation"
    return tried, f"{told}{f', and {attacked}' if attacked else ''}. {_intervals(tried.plan)}"


def _intervals(plan: Plan) -> str:
    """How sure the rates of one entrant will be, at worst: at a rate of one half, over all targets and seeds."""
    cells = len(plan.targets) * len(plan.seeds)
    parts = []
    for axis, n in plan.profile.cases.items():
        r = wilson(cells * n // 2, cells * n)
        parts.append(f"{axis} {50 * (r.high - r.low):.0f}")
    if plan.attacks:
        n = min(a.cases for a in plan.attacks) * cells
        r = wilson(n // 2, n)
        parts.append(f"attacked cases {50 * (r.high - r.low):.0f}")
    return f"The 95 % intervals over cases are then at most this many points to each side: {', '.join(parts)}"


def _seconds(
    found: Expanded, finished: Any, speed: dict[str, float], workers: int, kinds: Sequence[str] = ("erase", "evaluate", "attack")
) -> tuple[float, float]:
    """The least and the most that the cells take: backward passes, of erasures and attacks, double the time of a forward pass."""
    least = most = 0.0
    for cell in found.cells:
        if cell.kind in kinds and cell.key not in finished:
            seconds = cell.evals * speed[cell.how["model"]] / workers
            least, most = least + seconds, most + seconds * (1 if cell.kind == "evaluate" else 2)
    return least, most


def _announce(
    note: Callable[[str], None] | None,
    found: Expanded,
    kept: dict[str, Any],
    store: Store,
    speed: dict[str, float],
    workers: int,
    told_budget: str,
) -> None:
    """The plan with its cost, before anything runs."""
    if note is None:
        return
    plan, cells = found.plan, found.cells
    seeds = f"{len(plan.seeds)} training seed{'s' * (len(plan.seeds) > 1)}"
    targets = f"{len(plan.targets)} target{'s' * (len(plan.targets) > 1)}"
    lines = [
        f"Plan {plan.name}: {len(plan.entrants)} entrants on {', '.join(plan.models)}, {targets}, {seeds}; each evaluation has "
        f"{sum(plan.profile.cases.values())} images or fewer."
    ]
    if told_budget:
        lines.append(f"Budget: {told_budget}.")
    for kind, what in (("erase", "erasures"), ("evaluate", "evaluations"), ("attack", "attacks and controls")):
        mine = [c for c in cells if c.kind == kind]
        left = [c for c in mine if c.key not in kept]
        if mine:
            low, high = _seconds(found, kept, speed, workers, (kind,))
            evals = sum(c.evals for c in left)
            told = f"{evals:,.0f} UNet evaluations, {duration(low, high)}" if left else "nothing left"
            lines.append(f"  {len(mine):>4} {what}, {len(mine) - len(left)} of them finished before: {told}")
    low, high = _seconds(found, kept, speed, workers)
    milli = ", ".join(f"{1000 * s:.2g} ms on {m}" for m, s in speed.items())
    lines.append(
        f"Together {duration(low, high)} with {workers} worker{'s' * (workers > 1)}, at {milli} for one evaluation, "
        "measured now; loading and judging come on top."
    )
    for row in found.left_out:
        what = f"{row['what']} against {row['entrant']}" if row["what"] else row["entrant"]
        lines.append(f"Left out: {what} ({row['target']}, {row['model']}): {row['why']}")
    failed = [r for r in store.records().values() if r["status"] != FINISHED and r["key"] in {c.key for c in cells}]
    if failed:
        lines.append(f"{len(failed)} cells failed before and are tried again.")
    note("\n".join(lines))
