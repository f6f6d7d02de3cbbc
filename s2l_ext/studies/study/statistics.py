"""Over seeds: means with Student's t, paired differences, and what so many seeds could show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from s2l_ext.evaluation.intervals import LEVEL, Interval, bootstrap_tail, t_quantile

POWER = 0.8
RESAMPLES = 4000
FEWEST_FOR_VERDICT = 3
EQUAL = 1e-12
"""A standard deviation below this is rounding."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 % interval."""

    mean: float
    ci95: Interval


@dataclass(frozen=True)
class Difference(Estimate):
    """Paired by seed, to the baseline.

    Attributes:
        effect: Cohen's d of paired values: mean over standard deviation; None where all are equal.
        detectable: the smallest true difference that so many seeds show in four of five studies; None where the seeds
            do not tell how much a difference varies.
        clear: the interval leaves out 0, there are three seeds or more, and they do not all give one value: two
            seeds, or accuracies of few problems, agree by chance.
    """

    effect: float | None
    detectable: float | None
    clear: bool


def accuracy_over_seeds(values: Sequence[float]) -> Estimate:
    """:func:`over_seeds` of accuracies: the interval ends at 0 and 1."""
    found = over_seeds(values)
    return Estimate(found.mean, (max(0.0, found.ci95[0]), min(1.0, found.ci95[1])))


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and Student's t over two values or more."""
    half = t_quantile(LEVEL, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(fmean(values), (fmean(values) - half, fmean(values) + half))


def paired(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Of runs with the same seeds, in the same order."""
    gaps = [own - other for own, other in zip(values, baseline, strict=True)]
    found, spread = over_seeds(gaps), stdev(gaps)
    needed = t_quantile(LEVEL, len(gaps) - 1) + t_quantile(2 * POWER - 1, len(gaps) - 1)
    tells = len(gaps) >= FEWEST_FOR_VERDICT and spread > EQUAL
    clear = tells and not found.ci95[0] <= 0 <= found.ci95[1]
    effect = found.mean / spread if spread > EQUAL else None
    detectable = needed * spread / math.sqrt(len(gaps)) if tells else None
    return Difference(found.mean, found.ci95, effect, detectable, clear)


def hierarchical(problems_S_N: np.ndarray, seed: int = 0) -> Interval:
    """95 % bootstrap of the mean accuracy: resamples seeds, and inside each its problems.

    Args:
        problems_S_N: accuracy (or a paired difference) of N problems in each of S runs.
    """
    rng, (seeds, problems) = np.random.default_rng(seed), problems_S_N.shape
    means = np.empty(RESAMPLES)
    for place in range(RESAMPLES):
        drawn = problems_S_N[rng.integers(seeds, size=seeds)]
        at = rng.integers(problems, size=(seeds, problems))
        means[place] = np.take_along_axis(drawn, at, axis=1).mean()
    tail = bootstrap_tail(seeds)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
