"""Intervals and tests for rates and paired differences. Pure Python numbers in, numbers out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """A rate with everything needed to doubt it: k of n, a 95 % interval, and how many cases could not be scored."""

    k: int
    n: int
    low: float
    high: float
    invalid: int = 0

    @property
    def value(self) -> float:
        return self.k / self.n if self.n else math.nan

    def json(self) -> dict[str, float | int | None]:
        return {"value": self.value if self.n else None, **asdict(self)}


def wilson(k: int, n: int, invalid: int = 0, z: float = Z95) -> Rate:
    """Wilson score interval of k successes in n trials; the whole unit interval when n = 0."""
    if not 0 <= k <= n:
        raise ValueError(f"need 0 <= k <= n, got k={k}, n={n}")
    if n == 0:
        return Rate(0, 0, 0.0, 1.0, invalid)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # The exact bound is 0 (1) for k = 0 (k = n); rounding would leave 1e-17 instead.
    return Rate(k, n, 0.0 if k == 0 else max(0.0, centre - half), 1.0 if k == n else min(1.0, centre + half), invalid)


def newcombe_paired(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float, float]:
    """Difference of paired rates a - b with Newcombe's square-and-add 95 % interval (1998, method 10).

    The four counts are the 2 x 2 table of paired outcomes. Returns (difference, low, high).
    """
    n = both + only_a + only_b + neither
    if n == 0:
        return math.nan, -1.0, 1.0
    pa, pb = wilson(both + only_a, n), wilson(both + only_b, n)
    delta = pa.value - pb.value
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    phi = 0.0
    if product > 0:
        numerator = both * neither - only_a * only_b
        # Newcombe's continuity correction of phi, applied to positive numerators only.
        phi = (max(numerator - n / 2, 0) if numerator > 0 else numerator) / math.sqrt(product)
    la, ua, lb, ub = pa.value - pa.low, pa.high - pa.value, pb.value - pb.low, pb.high - pb.value
    low = delta - math.sqrt(max(0.0, la * la - 2 * phi * la * ub + ub * ub))
    high = delta + math.sqrt(max(0.0, ua * ua - 2 * phi * ua * lb + lb * lb))
    return delta, max(-1.0, low), min(1.0, high)


def mcnemar_midp(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test with mid-p correction on the discordant counts."""
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    pmf = [math.comb(n, i) * 0.5**n for i in range(k + 1)]
    return min(1.0, 2 * sum(pmf) - pmf[k])


Nested = Mapping[str, "Nested"] | Sequence[float]
"""Values in groups of any depth: concepts of cases, or targets of training seeds of cases."""


def resampled(values: Nested, rng: random.Random) -> list[float]:
    """One bootstrap sample: as many groups as there are, drawn with replacement, and within each the same again."""
    if not isinstance(values, Mapping):
        return rng.choices(values, k=len(values))
    groups = [group for group in values.values() if group]
    return [v for group in rng.choices(groups, k=len(groups)) for v in resampled(group, rng)]


def clustered_bootstrap(
    clusters: Mapping[str, Nested],
    statistic: Callable[[Sequence[float]], float] = lambda v: sum(v) / len(v),
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """95 % percentile interval, resampling clusters (concepts) and then their members (cases), or groups within them.

    None with fewer than two non-empty clusters: one cluster says nothing about the spread between clusters.
    """
    if sum(1 for group in clusters.values() if group) < 2:
        return None
    rng = random.Random(seed)
    stats = sorted(statistic(resampled(clusters, rng)) for _ in range(replicates))
    return stats[int(0.025 * replicates)], stats[min(replicates - 1, int(0.975 * replicates))]


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with a normal 95 % interval; NaN bounds below two values."""
    n = len(values)
    if n == 0:
        return math.nan, math.nan, math.nan
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan, math.nan
    half = Z95 * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return mean, mean - half, mean + half
