"""Pearson's chi-square test: do counts agree with the probabilities they were drawn with?"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_EXPECTED = 5.0
"""Cochran's rule: below this expected count the statistic is not chi-square distributed."""


class ChiSquare(NamedTuple):
    """Statistic, degrees of freedom, and the probability of a statistic at least as large."""

    statistic: float
    degrees: int
    p: float


def chi_square(observed_counts: ArrayLike, expected_mass: ArrayLike, left_share: ArrayLike | None = None) -> ChiSquare:
    """Test counts against masses (any positive scale), (K,) each.

    Bins with a variance below 5 are merged into one, and that one, if still below 5, into the smallest other.
    One bin alone gives 0 degrees and p = 1.

    Args:
        left_share: for draws without replacement, the share of each bin that was not drawn, by which the variance of
            its count is smaller than the expected count (finite-population factor). None: 1, with replacement.

    Raises:
        ValueError: shapes differ, a value is negative or not finite, or nothing was observed or expected.
    """
    observed = np.asarray(observed_counts, dtype=np.float64)
    mass = np.asarray(expected_mass, dtype=np.float64)
    if observed.ndim != 1 or observed.shape != mass.shape:
        raise ValueError(f"counts of shape {observed.shape} and masses of shape {mass.shape}: one mass per count")
    for name, values in (("counts", observed), ("masses", mass)):
        if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
            raise ValueError(f"{name} {values.tolist()} must be 0 or more, finite, and not all 0")
    expected = mass / mass.sum() * observed.sum()
    variance = expected if left_share is None else expected * np.asarray(left_share, dtype=np.float64)
    observed, expected, variance = _merged(observed, expected, variance)
    degrees = observed.size - 1
    if degrees == 0:
        return ChiSquare(0.0, 0, 1.0)
    statistic = float(((observed - expected) ** 2 / variance).sum())
    return ChiSquare(statistic, degrees, _upper_tail(statistic, degrees))


def _upper_tail(statistic: float, degrees: int) -> float:
    """Abramowitz and Stegun 26.4.4 and 26.4.5: a finite sum for whole degrees of freedom."""
    half = statistic / 2
    if half == 0:
        return 1.0
    powers = np.arange(degrees % 2 / 2, degrees / 2)
    terms = (math.exp(k * math.log(half) - half - math.lgamma(k + 1)) for k in powers)
    return min(1.0, math.fsum(terms) + (math.erfc(math.sqrt(half)) if degrees % 2 else 0.0))


def _merged(
    observed: NDArray[np.float64], expected: NDArray[np.float64], variance: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    order = np.argsort(variance, kind="stable")
    observed, expected, variance = observed[order], expected[order], variance[order]
    small = int(np.count_nonzero(variance < MIN_EXPECTED))
    if 0 < small < variance.size and variance[:small].sum() < MIN_EXPECTED:
        small += 1
    if small <= 1:
        return observed, expected, variance
    starts = np.array([0, *range(small, variance.size)])
    return np.add.reduceat(observed, starts), np.add.reduceat(expected, starts), np.add.reduceat(variance, starts)
