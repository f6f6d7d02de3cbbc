"""What ``curriculum.jsonl`` says of each step's draw, and whether the prompts drawn fit the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s2l_ext.report.results import read_json_lines

BINS = 20
BISECTIONS, LATEST = 60, 1e15
LEAST_EXPECTED = 5.0
"""Below this many expected draws a bin joins its neighbour: the usual limit of the chi-square approximation."""


@dataclass(frozen=True)
class Draw:
    """One step. Arrays have one place for each bin of pass rates, ``visits`` one for each number of visits.

    Attributes:
        histogram: prompts.
        bucket_mass: share of the draw probability; None for an order without weights.
        bucket_draws: prompts of this step.
        visits: prompts with 0, 1, 2, ... visits; the last place holds that many or more.
    """

    step: int
    type: str
    histogram: np.ndarray
    bucket_mass: np.ndarray | None
    bucket_draws: np.ndarray
    visits: np.ndarray

    @property
    def prompts(self) -> int:
        return int(self.visits.sum())


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's test; ``bins`` is their number after small ones joined."""

    statistic: float
    p: float
    bins: int

    @property
    def freedom(self) -> int:
        return self.bins - 1


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
    mass = record["bucket_mass"]
    return Draw(
        int(record["step"]),
        str(record["type"]),
        _counts(record, "histogram", BINS),
        None if mass is None else _counts(record, "bucket_mass", BINS),
        _counts(record, "bucket_draws", BINS),
        _counts(record, "visits"),
    )


def _counts(record: dict[str, Any], key: str, length: int | None = None) -> np.ndarray:
    values = np.asarray(record[key], dtype=float)
    if values.ndim != 1 or not len(values) or length not in (None, len(values)):
        raise ValueError(f"{key} must be a list of {length or 'at least one'} numbers")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"{key} must hold numbers >= 0")
    return values


def observed_and_expected(draws: Sequence[Draw]) -> tuple[np.ndarray, np.ndarray] | None:
    """Draws per bin over all steps that had weights, and how many the weights led to expect; None without such."""
    before = {draw.step + 1: draw.histogram for draw in draws}
    weighted = [draw for draw in draws if draw.bucket_mass is not None and draw.bucket_mass.any()]
    if not weighted:
        return None
    expected = [_expected(draw.bucket_draws.sum(), draw.bucket_mass, before.get(draw.step)) for draw in weighted]
    return np.sum([draw.bucket_draws for draw in weighted], axis=0), np.sum(expected, axis=0)


def _expected(drawn: float, mass: np.ndarray, prompts: np.ndarray | None) -> np.ndarray:
    """Draws by bin. ``prompts`` is the histogram when the step was drawn, that is, after the step before.

    Without replacement a likely bin gets less than its mass. Each prompt is as if it arrived at a random time with
    its weight as the rate, and the step takes the first ``drawn``; so all that matters is when the last one arrives.
    """
    mass = mass / mass.sum()
    if prompts is None or prompts[mass > 0].min() <= 0 or drawn >= prompts[mass > 0].sum():
        return drawn * mass
    rates = np.divide(mass, prompts, out=np.zeros(BINS), where=prompts > 0)
    low, high = 0.0, 1.0
    while _arrived(prompts, rates, high) < drawn and high < LATEST:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _arrived(prompts, rates, middle) < drawn else (low, middle)
    return prompts * -np.expm1(-rates * high)


def _arrived(prompts: np.ndarray, rates: np.ndarray, time: float) -> float:
    return float((prompts * -np.expm1(-rates * time)).sum())


def chi_square(observed: np.ndarray, expected: np.ndarray) -> ChiSquare | None:
    """None when fewer than two bins expect enough draws."""
    bins = _joined(observed, expected)
    if len(bins) < 2:
        return None
    import torch

    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in bins)
    halves = torch.tensor([(len(bins) - 1) / 2, statistic / 2], dtype=torch.float64)
    return ChiSquare(statistic, float(torch.special.gammaincc(halves[0], halves[1])), len(bins))


def _joined(observed: np.ndarray, expected: np.ndarray) -> list[tuple[float, float]]:
    """Neighbours joined from the left until each expects enough; what is left over joins the last."""
    bins: list[tuple[float, float]] = []
    seen = wanted = 0.0
    for count, share in zip(observed, expected, strict=True):
        seen, wanted = seen + float(count), wanted + float(share)
        if wanted >= LEAST_EXPECTED:
            bins.append((seen, wanted))
            seen = wanted = 0.0
    if bins and (seen or wanted):
        bins[-1] = (bins[-1][0] + seen, bins[-1][1] + wanted)
    return bins
