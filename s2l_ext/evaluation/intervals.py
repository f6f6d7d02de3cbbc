"""95 % intervals over problems, made for few of them. Evaluation, comparison and report all use these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist, fmean, stdev

import numpy as np

RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 500
BISECTIONS = 60
LEVEL = 0.95
Z = 1.959964
FEWEST = 6
"""Five problems that all go one way do so by chance with probability 2/32; six with 2/64, below 0.05 (sign test)."""

Interval = tuple[float, float]


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Of the mean of shares between 0 and 1, one a problem: Student's t, cut to [0, 1].

    Where all are 0 or 1, Wilson's. Where all are equal too: t would have no width, as if nothing were left to chance,
    and no shares of that mean vary more than 0 and 1 do. None for no value, or for one that is a share.
    """
    if values and {0.0, 1.0}.issuperset(values):
        return wilson_interval(fmean(values), len(values))
    if len(values) < 2:
        return None
    if min(values) == max(values):
        return wilson_interval(values[0], len(values))
    half = t_quantile(LEVEL, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return max(0.0, fmean(values) - half), min(1.0, fmean(values) + half)


def paired_interval(differences: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """95 % bootstrap of the mean of per-problem differences, resampling problems, corrected for few of them."""
    low, high = paired_intervals(differences[:, None], seed, resamples)
    return float(low[0]), float(high[0])


def paired_intervals(differences_P_M: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """The same for ``M`` measures, all from the same resampled problems: (2, M), low and high ends."""
    rng, count, means = np.random.default_rng(seed), len(differences_P_M), []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(RESAMPLES_AT_ONCE, resamples - start))
        means.append(times @ differences_P_M / count)
    tail = bootstrap_tail(count)
    ends: np.ndarray = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return ends


def verdict(interval: Interval, differing: int) -> str:
    """``clear``, ``not clear``, or ``too few`` when fewer than ``FEWEST`` problems differ."""
    if not interval[0] > 0 and not interval[1] < 0:
        return "not clear"
    return "clear" if differing >= FEWEST else "too few"


def bootstrap_tail(count: int) -> float:
    """The quantile of bootstrap means of ``count`` values at which a 95 % interval begins: 0.025 or less.

    The percentile interval is too narrow for few values: resampling shrinks the variance by (count - 1) / count, and
    its tails are a normal distribution's. The expanded percentile interval makes up for both (Hesterberg 2014,
    arXiv 1411.5279).
    """
    if count < 2:
        return 0.0
    return NormalDist().cdf(-math.sqrt(count / (count - 1)) * t_quantile(LEVEL, count - 1))


@cache
def t_quantile(level: float, degrees: int) -> float:
    """``t`` with ``level`` of Student's distribution in ``[-t, t]``, for a whole number of degrees of freedom."""
    return bisected(lambda t: _central(t, degrees) >= level)


def bisected(enough: Callable[[float], bool], most: float = math.inf) -> float:
    """The least number from 0, up to about ``most``, that is enough; larger ones are too."""
    low, high = 0.0, 1.0
    while high < most and not enough(high):
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _central(t: float, degrees: int) -> float:
    """Probability of ``[-t, t]``, by the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    theta, odd = math.atan2(t, math.sqrt(degrees)), degrees % 2
    term = total = (math.cos(theta) if degrees > 1 else 0.0) if odd else 1.0
    for factor in range(3 if odd else 2, degrees, 2):
        term *= math.cos(theta) ** 2 * (factor - 1) / factor
        total += term
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


def wilson_interval(proportion: float, n: int) -> Interval:
    """95 % interval of a proportion of ``n`` trials (Wilson 1927)."""
    centre = (proportion + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(proportion * (1 - proportion) / n + Z * Z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe_interval(a: float, of_a: Interval, b: float, of_b: Interval) -> Interval:
    """95 % interval of ``b - a`` for two independent proportions, from the interval of each (Newcombe 1998, no. 10)."""
    low = b - a - math.hypot(b - of_b[0], of_a[1] - a)
    return low, b - a + math.hypot(of_b[1] - b, a - of_a[0])
