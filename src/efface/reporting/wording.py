"""Numbers as text. What was not measured is called so; it never turns into a 0."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = "not measured"
LONGEST_LIST = 12
"""Longer lists are cut in tables of settings; run.json has all of them."""


def finite(x: Any) -> float | None:
    """The number, or None for null, NaN, infinity and everything that is no number."""
    if isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x):
        return None
    return float(x)


def _short(x: float, digits: int = 1) -> str:
    """At most ``digits`` decimals, without trailing zeros and without "-0"; a real minus sign."""
    text = f"{x:.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text.replace("-", "\N{MINUS SIGN}")


def percent(x: Any) -> str:
    value = finite(x)
    return NOT_MEASURED if value is None else f"{_short(100 * value)}%"


def percent_interval(low: float, high: float) -> str:
    """Both bounds, in one piece that no line break divides."""
    return f"{_short(100 * low)}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{_short(100 * high)}%"


def duration(seconds: float) -> str:
    """Seconds up to two minutes, then minutes, then hours, in one piece."""
    if seconds < 120:
        return f"{_short(seconds, 1 if seconds < 10 else 0)}\N{NO-BREAK SPACE}seconds"
    return f"{seconds / 60:.0f}\N{NO-BREAK SPACE}minutes" if seconds < 7200 else f"{seconds / 3600:.1f}\N{NO-BREAK SPACE}hours"


def p_value(x: Any) -> str:
    value = finite(x)
    if value is None:
        return NOT_MEASURED
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def score(x: Any) -> str:
    value = finite(x)
    return NOT_MEASURED if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def estimate(raw: Mapping[str, Any] | None, scale: float = 1.0, digits: int = 2, unit: str = "") -> str:
    """``value [low, high]``, signed by its own value; without brackets when there is no interval. No line break divides it."""
    value = finite((raw or {}).get("value"))
    if raw is None or value is None:
        return NOT_MEASURED
    low, high = finite(raw.get("low")), finite(raw.get("high"))
    text = _short(scale * value, digits) + unit
    if low is not None and high is not None:
        text += f" [{_short(scale * low, digits)}, {_short(scale * high, digits)}]"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


@dataclass(frozen=True)
class RateText:
    """A rate as shown: the estimate with what is needed to doubt it."""

    measured: tuple[float, float, float] | None
    """(value, low, high), all of them or none: an interval without its value ("0 to 100%") would look like a finding."""
    k: int = 0
    n: int = 0
    invalid: int = 0
    clustered: tuple[float, float] | None = None
    """The interval resampled by concept, where there is one."""

    @property
    def text(self) -> str:
        return percent(self.measured[0]) if self.measured else NOT_MEASURED

    @property
    def interval(self) -> str:
        return percent_interval(*self.measured[1:]) if self.measured else ""

    @property
    def by_concept(self) -> str:
        return percent_interval(*self.clustered) if self.measured and self.clustered else ""

    @property
    def counts(self) -> str:
        return f"{self.k}/{self.n}" if self.measured else ""

    @property
    def line(self) -> str:
        """Everything in one line, for tables of settings."""
        parts = [p for p in (self.interval, self.counts, f"{self.invalid} invalid" if self.invalid else "") if p]
        return f"{self.text} ({', '.join(parts)})" if parts else self.text


def rate(raw: Mapping[str, Any] | None, clustered: Sequence[Any] | None = None) -> RateText:
    """A Rate of summary.json, or null."""
    if raw is None:
        return RateText(None)
    value, low, high = (finite(raw.get(key)) for key in ("value", "low", "high"))
    invalid = int(finite(raw.get("invalid")) or 0)
    if value is None or low is None or high is None:
        return RateText(None, invalid=invalid)
    bounds = [finite(bound) for bound in clustered or ()]
    pair = (bounds[0], bounds[1]) if len(bounds) == 2 and bounds[0] is not None and bounds[1] is not None else None
    return RateText((value, low, high), int(raw["k"]), int(raw["n"]), invalid, pair)


def setting(value: Any) -> str:
    """One value of a configuration, calibration or profile, as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else NOT_MEASURED
    if isinstance(value, str):
        return value or '"" (empty)'
    if isinstance(value, Mapping):
        if {"value", "k", "n"} <= value.keys():
            return rate(value).line
        return json.dumps(value, ensure_ascii=False)
    shown = ", ".join(setting(v) for v in value[:LONGEST_LIST])
    return f"{shown}, \N{HORIZONTAL ELLIPSIS} ({len(value)} in all)" if len(value) > LONGEST_LIST else shown or "none"


def settings(raw: Mapping[str, Any] | None, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as flat (dotted name, text) rows; a Rate stays one row."""
    rows: list[tuple[str, str]] = []
    for key, value in (raw or {}).items():
        if isinstance(value, Mapping) and value and not {"value", "k", "n"} <= value.keys():
            rows += settings(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", setting(value)))
    return rows
