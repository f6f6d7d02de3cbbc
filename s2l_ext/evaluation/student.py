"""Quantile of Student's t distribution, for intervals from few problems."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

NORMAL = NormalDist()


def central(t: float, degrees: int) -> float:
    """Probability of ``[-t, t]``, t >= 0, by the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    theta = math.atan2(t, math.sqrt(degrees))
    square, odd = math.cos(theta) ** 2, degrees % 2
    term = total = (math.cos(theta) if degrees > 1 else 0.0) if odd else 1.0
    for j in range(3 if odd else 2, degrees, 2):
        term *= square * (j - 1) / j
        total += term
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


@cache
def quantile(level: float, degrees: int) -> float:
    """``t`` with ``level`` of the distribution in ``[-t, t]``, for a whole number of degrees of freedom."""
    low, high = 0.0, 1.0
    while central(high, degrees) < level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if central(middle, degrees) < level else (low, middle)
    return high


def bootstrap_tail(count: int, level: float = 0.95) -> float:
    """Which quantile of bootstrap means of ``count`` values ends an interval of ``level``: below (1 - level) / 2.

    A percentile interval is too narrow for few values, since resampling shrinks the variance by (count - 1) / count
    and has the tails of a normal distribution. This widens it by both (expanded percentile interval, Hesterberg 2015,
    arXiv 1411.5279, section 5.2). One value: 0.
    """
    return NORMAL.cdf(-math.sqrt(count / (count - 1)) * quantile(level, count - 1)) if count > 1 else 0.0
