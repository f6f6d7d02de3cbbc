"""Over seeds: means with Student's t, differences, what so many seeds could show, and what may be said.

Studies, ``s2l compare`` and ``s2l report`` all use these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from s2l_ext.evaluation.intervals import LEVEL, Interval, bootstrap_tail, t_quantile

FEWEST_SEEDS = 2
"""One seed has no interval."""
FEWEST_FOR_VERDICT = 3
POWER = 0.8
RESAMPLES = 4000
EQUAL = 1e-12
"""A standard deviation below this is rounding."""
NO_DIFFERENCE = "no difference could be shown"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 % interval."""

    mean: float
    ci95: Interval

    def text(self, sign: str = "", digits: int = 3, more: str = "") -> str:
        """``0.150 (0.100 to 0.200)``; ``sign`` "+" shows one, ``more`` stands after the interval."""
        mean, low, high = (f"{value:{sign}.{digits}f}" for value in (self.mean, *self.ci95))
        return f"{mean} ({low} to {high}{more})"


@dataclass(frozen=True)
class Difference(Estimate):
    """To the baseline: of runs with the same seeds, or of two independent sets of seeds.

    Attributes:
        effect: Cohen's d: the mean over the standard deviation (of the paired differences, or of both sides' values);
            None where all are equal.
        detectable: the smallest true difference that so many seeds show in four of five studies; None where the seeds
            do not tell how much a difference varies.
        clear: the interval leaves out 0, there are three seeds or more, and they do not all give one value: two
            seeds, or accuracies of few problems, agree by chance.
        seeds: how many pairs, or of the baseline and of this side where they do not pair.
    """

    effect: float | None
    detectable: float | None
    clear: bool
    seeds: tuple[int, ...]

    @property
    def counted(self) -> str:
        return f"{' and '.join(map(str, dict.fromkeys(self.seeds)))} seeds"

    @property
    def how(self) -> str:
        """The test, with the seeds that it counts."""
        if len(self.seeds) == 1:
            return f"paired over {self.seeds[0]} seeds"
        return f"{' and '.join(map(str, self.seeds))} independent seeds (Welch)"


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
    spread = stdev(gaps)
    return _difference(fmean(gaps), spread, spread / math.sqrt(len(gaps)), len(gaps) - 1, (len(gaps),))


def independent(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Of seeds that do not pair, two or more on each side: Welch's t, its degrees of freedom rounded down."""
    parts = [stdev(side) ** 2 / len(side) for side in (values, baseline)]
    degrees = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (values, baseline), strict=True))
    free = int(sum(parts) ** 2 / degrees + 1e-9) if degrees > 0 else 1
    spread = math.sqrt((stdev(values) ** 2 + stdev(baseline) ** 2) / 2)
    gap, seeds = fmean(values) - fmean(baseline), (len(baseline), len(values))
    return _difference(gap, spread, math.sqrt(sum(parts)), max(1, free), seeds)


def _difference(gap: float, spread: float, error: float, free: int, seeds: tuple[int, ...]) -> Difference:
    half, tells = t_quantile(LEVEL, free) * error, min(seeds) >= FEWEST_FOR_VERDICT and spread > EQUAL
    needed = t_quantile(LEVEL, free) + t_quantile(2 * POWER - 1, free)
    return Difference(
        gap,
        (gap - half, gap + half),
        gap / spread if spread > EQUAL else None,
        needed * error if tells else None,
        tells and not gap - half <= 0 <= gap + half,
        seeds,
    )


def hierarchical(problems_S_N: np.ndarray | Sequence[np.ndarray], seed: int = 0, shared: bool = True) -> Interval:
    """95 % bootstrap of the mean accuracy over seeds and problems. ``problems_S_N``: accuracy of N problems in each of
    S runs. ``shared``: the columns are the same problems, which are drawn once for all seeds; else each seed draws of
    its own, and N may differ."""
    rng, seeds = np.random.default_rng(seed), len(problems_S_N)
    means = np.empty(RESAMPLES)
    for place in range(RESAMPLES):
        drawn = [problems_S_N[run] for run in rng.integers(seeds, size=seeds)]
        columns = rng.integers(len(drawn[0]), size=len(drawn[0])) if shared else None
        own = (rng.integers(len(run), size=len(run)) if columns is None else columns for run in drawn)
        means[place] = fmean(run[chosen].mean() for run, chosen in zip(drawn, own, strict=True))
    tail = bootstrap_tail(seeds)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def sentence(who: str, found: Difference, baseline: str = "the baseline", counted: str = "") -> str:
    """What may be said of ``who`` beside the baseline. ``counted`` takes the place of ``found.counted``."""
    numbers = found.text("+", more=f", {counted or found.counted}")
    if found.clear:
        return f"{who} is {'above' if found.mean > 0 else 'below'} {baseline} by {numbers}."
    if found.detectable is None:
        return f"{who}: {NO_DIFFERENCE}, {numbers}. Give more seeds: these do not tell how much it varies."
    return f"{who}: {NO_DIFFERENCE}, {numbers}; {found.detectable:.3f} or more would show in four of five such studies."
