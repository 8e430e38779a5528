"""What the 95% intervals allow to be said, in plain sentences, and never more than that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .wording import RateText, finite, percent, percent_interval

DETECTION_LIMIT = 0.15
"""An erasure is supported when the upper bound of the target's detection lies below this."""
KEEP_FLOOR = 0.75
"""Neighbours are kept when the lower bound of their preservation lies above this."""
BROKEN_LIMIT = 0.10
"""With more invalid images than this, a missing target may just as well be a broken model."""


@dataclass(frozen=True)
class Verdict:
    """``status``: supported, contradicted, open (the interval contains the limit) or unmeasured."""

    status: str
    text: str


def erasure(target: str, detection: RateText, difference: Mapping[str, Any] | None) -> Verdict:
    """The decision goes by the bound, not by the estimate, and needs a fall against the base model where that is known."""
    if detection.measured is None:
        return Verdict("unmeasured", f"It was not measured whether {target} is gone.")
    (_, low, high), limit = detection.measured, percent(DETECTION_LIMIT)
    if low > DETECTION_LIMIT:
        text = f"No. Asked for by name, {target} is still detected in at least {percent(low)} of the valid images"
        return Verdict("contradicted", f"{text}; the limit is {limit}.")
    if high >= DETECTION_LIMIT:
        reach = f"{target} could still be in up to {percent(high)} of the images, and the limit is {limit}"
        return Verdict("open", f"Undecided: {reach}. Evaluate more images, with a larger profile.")
    images = detection.n + detection.invalid
    if detection.invalid > BROKEN_LIMIT * images:
        broken = f"{detection.invalid} of {images} images are invalid"
        return Verdict(
            "open",
            f"Undecided: {target} is seldom detected, but {broken}, so the model may be damaged and the target not erased.",
        )
    upper = finite((difference or {}).get("high"))
    if upper is not None and upper >= 0:
        text = f"Undecided: {target} is seldom detected, but not clearly less often than with the unmodified model."
        return Verdict("open", text)
    text = f"Yes. Asked for by name, {target} is detected in at most {percent(high)} of the valid images; the limit is {limit}."
    return Verdict("supported", text)


def keeping(near: RateText) -> Verdict:
    """Judged by the wider of the two intervals: over cases, and over concepts where there are enough of them."""
    if near.measured is None:
        return Verdict("unmeasured", "It was not measured whether near concepts are kept.")
    (_, low, high), floor = near.measured, percent(KEEP_FLOOR)
    if near.clustered is not None:
        low, high = min(low, near.clustered[0]), max(high, near.clustered[1])
    if low > KEEP_FLOOR:
        text = f"Near concepts are kept: at least {percent(low)} of their images are preserved, and the limit is {floor}."
        return Verdict("supported", text)
    if high < KEEP_FLOOR:
        text = f"Near concepts are damaged: at most {percent(high)} of their images are preserved, and the limit is {floor}."
        return Verdict("contradicted", text)
    reach = f"the interval of their preservation is {percent_interval(low, high)}, and the limit is {floor}"
    return Verdict(
        "open", f"It is undecided whether near concepts are kept: {reach}. Evaluate more images, with a larger profile."
    )


def sentence(erased: Verdict, kept: Verdict) -> str:
    """Both verdicts in a row."""
    return f"{erased.text} {kept.text}"
