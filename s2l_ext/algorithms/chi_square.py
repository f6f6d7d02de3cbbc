"""Pearson's chi-square test: do counts agree with the probabilities they were drawn with?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

MIN_EXPECTED = 5.0
"""Cochran's rule: below this expected count the statistic is not chi-square distributed."""


class ChiSquare(NamedTuple):
    """Statistic, degrees of freedom, and the probability of a statistic at least as large."""

    statistic: float
    degrees: int
    p: float


def chi_square(observed_counts: ArrayLike, expected_mass: ArrayLike) -> ChiSquare:
    """Test counts against masses (any positive scale), (K,) each.

    Bins with an expected count below 5 are merged into one, and that one, if still below 5, into the smallest other.
    One bin alone gives 0 degrees and p = 1.

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
    observed, expected = _merged(observed, mass / mass.sum() * observed.sum())
    degrees = observed.size - 1
    if degrees == 0:
        return ChiSquare(0.0, 0, 1.0)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    halves = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return ChiSquare(statistic, degrees, float(torch.special.gammaincc(halves[0], halves[1])))


def _merged(
    observed: NDArray[np.float64], expected: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.argsort(expected, kind="stable")
    observed, expected = observed[order], expected[order]
    small = int(np.count_nonzero(expected < MIN_EXPECTED))
    if 0 < small < expected.size and expected[:small].sum() < MIN_EXPECTED:
        small += 1
    if small <= 1:
        return observed, expected
    starts = np.array([0, *range(small, expected.size)])
    return np.add.reduceat(observed, starts), np.add.reduceat(expected, starts)
