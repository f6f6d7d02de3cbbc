"""What ``curriculum.jsonl`` says of each step's draw, and what the weights led to expect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s2l_ext.evaluation.intervals import bisected
from s2l_ext.report.results import read_json_lines

BINS = 20
MIN_EXPECTED = 5.0
"""Cochran's rule: below this expected count the statistic is not chi-square distributed."""
LATEST = 1e15


@dataclass(frozen=True)
class Draw:
    """One step. Arrays have one place for each bin of pass rates, ``visits`` one for each number of visits; all are
    None for a curriculum that keeps no pass rates.

    Attributes:
        histogram: prompts.
        bucket_mass: share of the draw probability; None for an order without weights.
        bucket_draws: prompts of this step.
        visits: prompts with 0, 1, 2, ... visits; the last place holds that many or more.
    """

    step: int
    type: str
    histogram: np.ndarray | None
    bucket_mass: np.ndarray | None
    bucket_draws: np.ndarray | None
    visits: np.ndarray | None

    @property
    def prompts(self) -> int:
        return 0 if self.visits is None else int(self.visits.sum())


def read_draws(path: Path) -> list[Draw]:
    """By step. A run that resumed goes back to an earlier step: what it had drawn from there on does not count.

    Raises:
        DataError: a line before the last is not a curriculum line.
    """
    if not path.is_file():
        return []
    kept: list[Draw] = []
    for draw in read_json_lines(path, _draw, "a curriculum line"):
        while kept and kept[-1].step >= draw.step:
            kept.pop()
        kept.append(draw)
    return kept


def _draw(record: dict[str, Any]) -> Draw:
    step, kind = int(record["step"]), str(record["type"])
    histogram, mass, draws = (_counts(record, key, BINS) for key in ("histogram", "bucket_mass", "bucket_draws"))
    return Draw(step, kind, histogram, mass, draws, _counts(record, "visits"))


def _counts(record: dict[str, Any], key: str, length: int | None = None) -> np.ndarray | None:
    if record[key] is None:
        return None
    values = np.asarray(record[key], dtype=float)
    if values.ndim != 1 or not len(values) or length not in (None, len(values)):
        raise ValueError(f"{key} must be a list of {length or 'at least one'} numbers")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"{key} must hold numbers >= 0")
    return values


@dataclass(frozen=True)
class Tally:
    """Draws per bin over all steps that had weights, (K,) each.

    Attributes:
        expected: what the weights led to expect.
        left: by how much the counts vary less than ``expected``, for draws without replacement; 1 where the number of
            prompts in a bin is not known.
    """

    observed: np.ndarray
    expected: np.ndarray
    left: np.ndarray


def tally(draws: Sequence[Draw]) -> Tally | None:
    """None without a step that had weights."""
    before = {draw.step + 1: draw.histogram for draw in draws}
    observed, expected, variance = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS)
    for draw in draws:
        if draw.bucket_draws is None or draw.bucket_mass is None or not draw.bucket_mass.any():
            continue
        prompts = before.get(draw.step)
        mean = _expected(draw.bucket_draws.sum(), draw.bucket_mass, prompts)
        taken = 0.0 if prompts is None else np.divide(mean, prompts, out=np.zeros(BINS), where=prompts > 0)
        observed, expected = observed + draw.bucket_draws, expected + mean
        variance += mean * (1 - np.minimum(taken, 1.0))
    left = np.divide(variance, expected, out=np.ones(BINS), where=expected > 0)
    return Tally(observed, expected, left) if observed.any() or expected.any() else None


def _expected(drawn: float, mass: np.ndarray, prompts: np.ndarray | None) -> np.ndarray:
    """Draws by bin. ``prompts`` is the histogram when the step was drawn, that is, after the step before.

    Without replacement a likely bin gets less than its mass. Each prompt is as if it arrived at a random time with
    its weight as the rate, and the step takes the first ``drawn``; so all that matters is when the last one arrives.
    """
    mass = mass / mass.sum()
    if prompts is None or prompts[mass > 0].min() <= 0 or drawn >= prompts[mass > 0].sum():
        return drawn * mass
    rates = np.divide(mass, prompts, out=np.zeros(BINS), where=prompts > 0)

    def arrived(time: float) -> np.ndarray:
        return prompts * -np.expm1(-rates * time)

    last = bisected(lambda time: arrived(time).sum() >= drawn, most=LATEST)
    return arrived(last)


# ---- do counts agree with the probabilities they were drawn with? (Pearson) ------------------------------------------


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
    observed, mass = (np.asarray(values, dtype=np.float64) for values in (observed_counts, expected_mass))
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
