"""Whether an erasure holds under a condition: the same cases of the unmodified and the erased model, plain and under it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..equations.statistics import mcnemar_midp, newcombe_paired, wilson

SURVIVES, COMES_BACK, UNDECIDED, NOT_TESTABLE = "survives", "comes back", "undecided", "not testable"
MARGIN = 0.1
"""An erasure survives where the target comes back in fewer than this share more of the cases than without the condition."""
DRAWN = 0.5
"""Share of the cases that the unmodified model must still draw under the condition, and of the erased model's images that must be
valid: below it, nothing can be said."""
LEAST = 4
"""Paired cases below which nothing is said."""


@dataclass(frozen=True)
class Look:
    """One image: whether it can be judged at all, and whether it shows the target."""

    valid: bool
    hit: bool


def compared(
    base: Sequence[Look], erased: Sequence[Look], base_under: Sequence[Look], erased_under: Sequence[Look], margin: float = MARGIN
) -> dict[str, Any]:
    """What may be said of one condition from the same cases in four ways: unmodified and erased, plain and under the condition.

    Cases count in which the unmodified model shows the target, plain *and* under the condition, and in which both images of the
    erased model are valid; ``left_out`` counts the others. ``plain`` and ``under`` are the rates of them in which the erased
    model shows the target, ``difference`` is under minus plain, paired, with Newcombe's interval. ``base`` is the rate at which
    the unmodified model still shows the target under the condition.

    ``status``: "comes back" where the interval of the difference lies above 0, "survives" where it lies below ``margin``, else
    "undecided". "not testable", with ``why``, where the unmodified model draws too few of the cases under the condition, where
    too many images of the erased model are invalid, or where fewer than LEAST cases are left: a broken picture is no erasure.
    """
    shown = [i for i, b in enumerate(base) if b.hit]
    kept = [i for i in shown if base_under[i].hit]
    valid = [i for i in kept if erased_under[i].valid]
    pairs = [(erased_under[i].hit, erased[i].hit) for i in valid if erased[i].valid]
    counts = (pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True)), pairs.count((False, False)))
    value, low, high = newcombe_paired(*counts)
    n = len(pairs)
    why = ""
    if len(kept) < DRAWN * len(shown) or not kept:
        why = f"the unmodified model shows the target in {len(kept)} of {len(shown)} cases under this condition"
    elif len(valid) < DRAWN * len(kept):
        why = f"{len(kept) - len(valid)} of {len(kept)} images of the erased model are invalid under this condition"
    elif n < LEAST:
        why = f"{n} cases are left, and {LEAST} are needed"
    status = NOT_TESTABLE if why else COMES_BACK if low > 0 else SURVIVES if high < margin else UNDECIDED
    return {
        "status": status,
        "why": why,
        "base": wilson(len(kept), len(shown), sum(not base_under[i].valid for i in shown)).json(),
        "plain": wilson(counts[0] + counts[2], n).json(),
        "under": wilson(counts[0] + counts[1], n, len(kept) - len(valid)).json(),
        "difference": {
            "value": value if n else None,
            "low": low,
            "high": high,
            "p_value": mcnemar_midp(counts[1], counts[2]),
        },
        "n": n,
        "left_out": len(base) - n,
    }


def needed(margin: float = MARGIN) -> int:
    """The fewest paired cases with which a condition can survive: with all of them still erased."""
    n = LEAST
    while newcombe_paired(0, 0, 0, n)[2] >= margin:
        n += 1
    return n
