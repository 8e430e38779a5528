"""Intervals and tests for rates and paired differences. Plain Python numbers go in and come out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """A rate k of n with its 95 % interval and the number of cases that were invalid, so could not
    be scored."""

    k: int
    n: int
    low: float
    high: float
    invalid: int = 0

    @property
    def value(self) -> float:
        """k / n; NaN without cases."""
        return self.k / self.n if self.n else math.nan

    def json(self) -> dict[str, float | int | None]:
        """The rate as plain values for a JSON file."""
        return {"value": self.value if self.n else None, **asdict(self)}


def wilson(k: int, n: int, invalid: int = 0, z: float = Z95) -> Rate:
    """Wilson's score interval of k successes in n trials; the whole unit interval when n is 0."""
    if not 0 <= k <= n:
        raise ValueError(f"need 0 <= k <= n, got k={k}, n={n}")
    if n == 0:
        return Rate(0, 0, 0.0, 1.0, invalid)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # The exact bound is 0 for k = 0 and 1 for k = n, where rounding would leave 1e-17.
    return Rate(k, n, 0.0 if k == 0 else max(0.0, centre - half), 1.0 if k == n else min(1.0, centre + half), invalid)


def newcombe_paired(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float, float]:
    """The difference a - b of two paired rates with Newcombe's square-and-add 95 % interval (1998,
    method 10).

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
        # Newcombe corrects phi for continuity, and only where the numerator is positive.
        phi = (max(numerator - n / 2, 0) if numerator > 0 else numerator) / math.sqrt(product)
    la, ua, lb, ub = pa.value - pa.low, pa.high - pa.value, pb.value - pb.low, pb.high - pb.value
    low = delta - math.sqrt(max(0.0, la * la - 2 * phi * la * ub + ub * ub))
    high = delta + math.sqrt(max(0.0, ua * ua - 2 * phi * ua * lb + lb * lb))
    return delta, max(-1.0, low), min(1.0, high)


def mcnemar_midp(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test with mid-p correction, from the numbers of pairs in which only a
    or only b succeeds."""
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    pmf = [math.comb(n, i) * 0.5**n for i in range(k + 1)]
    return min(1.0, 2 * sum(pmf) - pmf[k])


Nested = Mapping[str, "Nested"] | Sequence[float]
"""Values in nested groups, such as cases within concepts, or cases within training seeds within targets."""


def resampled(values: Nested, rng: random.Random) -> list[float]:
    """One bootstrap sample: as many groups as there are, drawn with replacement, and the same again
    within each group."""
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
    """A 95 % percentile interval that resamples clusters (concepts), and then their members (cases)
    or the groups within them.

    None with fewer than two non-empty clusters, because one cluster says nothing about the spread
    between clusters.
    """
    if sum(1 for group in clusters.values() if group) < 2:
        return None
    rng = random.Random(seed)
    return percentile_interval(statistic(resampled(clusters, rng)) for _ in range(replicates))


def total_variation(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """Half the sum of |p - q| over all names, of two counts as shares p and q: 0 for the same shares, 1 where no name is shared.
    NaN where one of them is empty."""
    n, m = sum(a.values()), sum(b.values())
    return sum(abs(a.get(k, 0) / n - b.get(k, 0) / m) for k in sorted({*a, *b})) / 2 if n and m else math.nan


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean with a normal 95 % interval. The bounds are NaN with fewer than two values."""
    n = len(values)
    if n == 0:
        return math.nan, math.nan, math.nan
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan, math.nan
    half = Z95 * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return mean, mean - half, mean + half


def centre_interval(values: Sequence[float], *, level: float = 0.95, draws: int = 4096, seed: int = 0) -> tuple[float, float]:
    """An interval for the centre of paired differences whose distributions are symmetric, from the
    means of their subsets.

    Hartigan (1969): for independent values with symmetric distributions about one centre, the means
    of the 2^n - 1 non-empty subsets cut the line into 2^n pieces that contain the centre with equal
    probability. So quantiles of these means are an exact interval, whatever the distribution; it
    contains 0 where the two-sided sign-flip test does not reject. With more than 12 values,
    ``draws`` random subsets are taken. The interval is unbounded below 6 values, where none of this
    kind has 95 %.
    """
    n = len(values)
    if n < math.ceil(math.log2(2 / (1 - level))):
        return -math.inf, math.inf
    if n <= 12:
        sums, counts = [0.0], [0]
        for v in values:
            sums, counts = sums + [s + v for s in sums], counts + [c + 1 for c in counts]
        means = sorted(s / c for s, c in zip(sums[1:], counts[1:], strict=True))
    else:
        rng = random.Random(seed)
        subsets = ([v for v in values if rng.random() < 0.5] for _ in range(draws - 1))
        means = sorted(sum(s) / len(s) for s in subsets if s)
    cut = math.floor((len(means) + 1) * (1 - level) / 2)  # how many pieces lie outside the interval on each side
    return means[cut - 1], means[-cut]


def sign_flip(values: Sequence[float], *, draws: int = 4095, seed: int = 0) -> float:
    """One-sided p value for "the mean is above 0", against every value being as likely as its
    negative.

    All 2^n sign patterns are taken up to 12 values, otherwise ``draws`` random ones and the
    observed one.
    """
    n, observed = len(values), math.fsum(values)
    if not n:
        return 1.0
    slack = 1e-12 * math.fsum(map(abs, values))  # sums that are equal but for rounding count as equal
    if n <= 12:
        sums = [0.0]
        for v in values:
            sums = [s + d for s in sums for d in (v, -v)]
        return sum(s >= observed - slack for s in sums) / len(sums)
    rng = random.Random(seed)
    sums = [math.fsum(v if rng.random() < 0.5 else -v for v in values) for _ in range(draws)]
    return (1 + sum(s >= observed - slack for s in sums)) / (draws + 1)


def benjamini_hochberg(p_values: Sequence[float], q: float = 0.05) -> list[bool]:
    """Which hypotheses are rejected, so that the expected share of false rejections (false
    discovery rate) is at most q.

    Where no effect exists, any rejection at all has a probability of at most q.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    passed = [k for k, i in enumerate(order, 1) if p_values[i] <= q * k / len(order)]
    rejected = set(order[: max(passed, default=0)])
    return [i in rejected for i in range(len(p_values))]


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share their mean rank."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found, start = [0.0] * len(values), 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or values[order[stop]] != values[order[start]]:
            for i in order[start:stop]:
                found[i] = (start + 1 + stop) / 2
            start = stop
    return found


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation; NaN where one of the two does not vary."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    sxx, syy = sum((a - mx) ** 2 for a in x), sum((b - my) ** 2 for b in y)
    sxy = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return sxy / math.sqrt(sxx * syy) if sxx > 0 and syy > 0 else math.nan


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN where one of the two does not vary."""
    return pearson(ranks(x), ranks(y))


def percentile_interval(samples: Iterable[float]) -> tuple[float, float] | None:
    """The 2.5 and 97.5 % points of bootstrap replicates, NaN ones left out; None without any."""
    kept = sorted(s for s in samples if s == s)
    return (kept[int(0.025 * len(kept))], kept[int(0.975 * len(kept))]) if kept else None


def spearman_interval(
    x: Sequence[float], y: Sequence[float], *, replicates: int = 1000, seed: int = 0
) -> tuple[float, tuple[float, float] | None]:
    """The rank correlation with a 95 % interval by bootstrap over the pairs."""
    rng, n = random.Random(seed), len(x)
    drawn = ([rng.randrange(n) for _ in range(n)] for _ in range(replicates))
    return spearman(x, y), percentile_interval(spearman([x[i] for i in d], [y[i] for i in d]) for d in drawn)


def grouping_test(
    similarity: Sequence[Sequence[float]], labels: Sequence[str], *, draws: int = 1999, seed: int = 0
) -> tuple[float, float, float]:
    """Test whether items with one label are more alike than items with different labels, by
    permuting the labels.

    Returns the mean similarity within labels, that between labels, and the one-sided p value for
    "within is no higher". ``similarity`` is a symmetric matrix over the items. Raises ValueError
    unless there are a pair of one label and a pair of two.
    """

    def means(named: Sequence[str]) -> tuple[float, float]:
        sums, counts = [0.0, 0.0], [0, 0]
        for i in range(len(named)):
            for j in range(i):
                same = named[i] == named[j]
                sums[same] += similarity[i][j]
                counts[same] += 1
        if not all(counts):
            raise ValueError("a grouping needs two items of one label and items of two labels")
        return sums[1] / counts[1], sums[0] / counts[0]

    within, between = means(labels)
    rng, shuffled, higher = random.Random(seed), list(labels), 1
    for _ in range(draws):
        rng.shuffle(shuffled)
        w, b = means(shuffled)
        higher += w - b >= within - between - 1e-12
    return within, between, higher / (draws + 1)


Along = tuple[str, Sequence[float], Sequence[float]]
"""A case at several strengths of the patches of two methods a and b: "erased" or "rest", the values of a, and those of b."""


def matched_difference(tree: Nested, level: float, start: float, *, replicates: int = 2000, seed: int = 0) -> dict[str, Any]:
    """What two methods do to other concepts at the strengths where each erases the same share,
    ``level``, of the target's cases.

    ``tree`` holds :data:`Along` in groups of any depth, with strengths ascending. A method's curve
    runs through (mean of "erased", mean of "rest") at its strengths, from (0, ``start``) at
    strength 0. Its first crossing of ``level`` is interpolated linearly. Both curves come from the
    same resample. Resamples in which one curve does not reach the level are counted and give no
    difference.
    """

    def rest(sample: Sequence[Any], which: int) -> float | None:
        erased = [c[which] for c in sample if c[0] == "erased"]
        others = [c[which] for c in sample if c[0] == "rest"]
        if not erased or not others:
            return None
        along = [
            (sum(e) / len(erased), sum(r) / len(others))
            for e, r in zip(zip(*erased, strict=True), zip(*others, strict=True), strict=True)
        ]
        for (e0, r0), (e1, r1) in pairwise([(0.0, start), *along]):
            if e1 >= level:
                return r0 + (r1 - r0) * (level - e0) / (e1 - e0)
        return None

    def flat(groups: Any) -> list[Any]:
        return [v for g in groups.values() for v in flat(g)] if isinstance(groups, Mapping) else list(groups)

    cases, rng, differences, missed = flat(tree), random.Random(seed), [], 0
    for _ in range(replicates):
        sample = resampled(tree, rng)
        a, b = rest(sample, 1), rest(sample, 2)
        if a is None or b is None:
            missed += 1
        else:
            differences.append(a - b)
    a, b = rest(cases, 1), rest(cases, 2)
    interval = percentile_interval(differences)
    return {
        "level": level,
        "rest": [a, b],
        "difference": a - b if a is not None and b is not None else None,
        "interval": list(interval) if interval else None,
        "not_reached": missed / replicates,
        "n": len(cases),
    }
