"""What the intervals allow to be said, in one sentence, and never more than that."""

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
        return Verdict("unmeasured", f"whether {target} is erased was not measured")
    (_, low, high), limit = detection.measured, percent(DETECTION_LIMIT)
    if low > DETECTION_LIMIT:
        text = f"the erasure is not supported, because detection is {percent(low)} at least, above the limit of {limit}"
        return Verdict("contradicted", text)
    if high >= DETECTION_LIMIT:
        reach = f"the interval of detection, {detection.interval}, reaches the limit of {limit}"
        return Verdict("open", f"whether {target} is erased stays open, because {reach}")
    images = detection.n + detection.invalid
    if detection.invalid > BROKEN_LIMIT * images:
        broken = f"{detection.invalid} of {images} images are invalid"
        return Verdict("open", f"{target} is seldom detected, but {broken}, so this may be damage and not erasure")
    upper = finite((difference or {}).get("high"))
    if upper is not None and upper >= 0:
        text = f"{target} is seldom detected, but not clearly less often than in the base model, so no erasure is shown"
        return Verdict("open", text)
    text = f"the erasure is supported, because detection is {percent(high)} at most, below the limit of {limit}"
    return Verdict("supported", text)


def keeping(near: RateText) -> Verdict:
    """Judged by the wider of the two intervals: over cases, and over concepts where there are enough of them."""
    if near.measured is None:
        return Verdict("unmeasured", "preservation of near concepts was not measured")
    (_, low, high), floor = near.measured, percent(KEEP_FLOOR)
    if near.clustered is not None:
        low, high = min(low, near.clustered[0]), max(high, near.clustered[1])
    if low > KEEP_FLOOR:
        text = f"near concepts are kept, because their preservation is {percent(low)} at least, above {floor}"
        return Verdict("supported", text)
    if high < KEEP_FLOOR:
        text = f"near concepts are damaged, because their preservation is {percent(high)} at most, below {floor}"
        return Verdict("contradicted", text)
    reach = f"the interval of preservation, {percent_interval(low, high)}, contains {floor}"
    return Verdict("open", f"whether near concepts are kept stays open, because {reach}")


def sentence(erased: Verdict, kept: Verdict) -> str:
    """Both verdicts as one sentence."""
    joint = "and" if erased.status == kept.status else "but"
    text = f"{erased.text}; {joint} {kept.text}."
    return f"By the 95% intervals, {text}"
