"""What the 95% intervals allow to be said, in plain sentences, and never more than that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..equations.statistics import wilson
from ..errors import BadOption
from .wording import RateText, finite, percent, percent_interval


@dataclass(frozen=True)
class Limits:
    """Where a verdict changes. Raises BadOption for a limit that is no share between 0 and 1."""

    detection: float = 0.15
    """An erasure is supported when the upper bound of every rate at which the target comes back lies below this."""
    keep: float = 0.75
    """Neighbours are kept when the lower bound of their preservation lies above this."""
    invalid: float = 0.10
    """With a larger share of invalid images than this, a missing target may just as well be a broken model."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = finite(getattr(self, field.name))
            if value is None or not 0 < value < 1:
                raise BadOption(f"the limit {field.name}={getattr(self, field.name)!r} must be a share between 0 and 1.")


DEFAULTS = Limits()


@dataclass(frozen=True)
class Verdict:
    """``status``: supported, contradicted, open (the interval contains the limit) or unmeasured."""

    status: str
    text: str


def remaining(detection: RateText) -> RateText:
    """The rate at which the target is still there, of all images: one that is invalid counts as still there, because it shows no
    erasure."""
    if not detection.n + detection.invalid:
        return detection
    found = wilson(detection.k + detection.invalid, detection.n + detection.invalid)
    return RateText((found.value, found.low, found.high), found.k, found.n, detection.invalid)


def erasure(
    target: str,
    named: RateText,
    difference: Mapping[str, Any] | None,
    synonyms: RateText,
    attacks: Mapping[str, RateText],
    limits: Limits,
) -> Verdict:
    """Whether the target is erased: when asked for by name, by other names, and under the attacks that were run.

    ``named`` and ``synonyms`` are the rates at which the target is detected among valid images; ``attacks`` holds the rate of
    broken cases of each attack, under the words that the sentence uses for it. A verdict rests on the ends of the 95 % intervals:

    - The erasure is contradicted where the lower end of some rate lies above the limit.
    - It is supported where the upper end of every rate lies below the limit even when each invalid image (for attacks, each
      undecided case) is counted as if it showed the target. Synonyms must have been measured, and where the fall against the
      unmodified model is known, its interval must leave out zero.
    - Otherwise it is undecided, and the sentence says why.
    """
    images = named.n + named.invalid
    if not images:
        return Verdict("unmeasured", f"It was not measured whether {target} is gone.")
    limit, seen = percent(limits.detection), {"by name": named, "by other names": synonyms, **attacks}
    above = [f"at least {percent(m[1])} {how}" for how, r in seen.items() if (m := r.measured) and m[1] > limits.detection]
    if above:
        return Verdict("contradicted", f"No. {target} comes back in {_and(above)}; the limit is {limit}.")
    if named.invalid > limits.invalid * images:
        broken = f"{named.invalid} of {images} images are invalid"
        return Verdict(
            "open",
            f"Undecided: {target} is seldom detected, but {broken}, so the model may be damaged and the target not erased.",
        )
    rates = {how: remaining(r) for how, r in seen.items()}
    bounds = {how: r.measured for how, r in rates.items() if r.measured is not None}
    reaching = [f"up to {percent(high)} {how}" for how, (_, _, high) in bounds.items() if high >= limits.detection]
    if reaching:
        reach = f"{target} could still come back in {_and(reaching)}, and the limit is {limit}"
        return Verdict("open", f"Undecided: {reach}. Evaluate more images, with a larger profile.")
    upper = finite((difference or {}).get("high"))
    if upper is not None and upper >= 0:
        text = f"Undecided: {target} is seldom detected, but not clearly less often than with the unmodified model."
        return Verdict("open", text)
    unmeasured = [how for how, r in rates.items() if r.measured is None]
    if unmeasured:
        name = percent(bounds["by name"][2])
        text = f"{target} comes back in at most {name} by name, but it was not measured {_and(unmeasured)}"
        return Verdict("open", f"Undecided: {text}.")
    said = _and([f"at most {percent(high)} {how}" for how, (_, _, high) in bounds.items()])
    text = f"Yes. {target} comes back in {said}; the limit is {limit}."
    return Verdict("supported", text if attacks else f"{text} No attack was tried.")


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def keeping(near: RateText, limits: Limits) -> Verdict:
    """Judged by the wider of the two intervals: over cases, and over concepts where there are enough of them."""
    if near.measured is None:
        return Verdict("unmeasured", "It was not measured whether near concepts are kept.")
    (_, low, high), floor = near.measured, percent(limits.keep)
    if near.clustered is not None:
        low, high = min(low, near.clustered[0]), max(high, near.clustered[1])
    if low > limits.keep:
        text = f"Near concepts are kept: at least {percent(low)} of their images are preserved, and the limit is {floor}."
        return Verdict("supported", text)
    if high < limits.keep:
        text = f"Near concepts are damaged: at most {percent(high)} of their images are preserved, and the limit is {floor}."
        return Verdict("contradicted", text)
    reach = f"the interval of their preservation is {percent_interval(low, high)}, and the limit is {floor}"
    return Verdict(
        "open", f"It is undecided whether near concepts are kept: {reach}. Evaluate more images, with a larger profile."
    )


def damaged(kept: RateText | None, found: Mapping[str, Any] | None, limits: Limits) -> list[str]:
    """Why a concept counts as damaged, in every section of a report alike; [] where nothing says so.

    kept: its preservation in the evaluation; found: its row of the search for damage. None where one was not measured.
    """
    reasons = []
    if kept is not None and kept.measured is not None and kept.measured[2] < limits.keep:
        reasons.append(f"preserved in {percent(kept.measured[2])} at most")
    if found is not None and found["damaged"]:
        tests = {"name": "the detector names it less often", "score": "its score falls"}
        reasons += [tests[by] for by in found.get("by", ["score"])]
    return reasons


def sentence(erased: Verdict, kept: Verdict) -> str:
    """Both verdicts in a row."""
    return f"{erased.text} {kept.text}"
