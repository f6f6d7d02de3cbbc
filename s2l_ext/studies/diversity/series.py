"""Autocorrelation of a value that each response token has, such as the explorer-learner log-ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s2l_ext.studies.diversity.bootstrap import Bootstrap, Floats


@dataclass(frozen=True)
class LagSums:
    """Sums over the rows of one problem, lags 1..L: products of values that far apart, what random order would give,
    and how many there are; then the sum of squares and the number of tokens."""

    products_L: Floats
    shuffled_L: Floats
    counts_L: Floats
    squares: float
    tokens: int


def lag_sums(rows: Sequence[Floats], mean: float, lags: int) -> LagSums:
    """Args: rows: one value a token; mean: over all tokens of all problems, taken off first."""
    products, shuffled, counts = np.zeros(lags), np.zeros(lags), np.zeros(lags)
    centred = [np.asarray(row, dtype=float) - mean for row in rows]
    for row in centred:
        pairs = np.maximum(len(row) - np.arange(1, lags + 1), 0)
        for lag in range(1, min(lags, len(row) - 1) + 1):
            products[lag - 1] += row[:-lag] @ row[lag:]
        shuffled += pairs * _product_of_two(row)
        counts += pairs
    return LagSums(products, shuffled, counts, float(sum(row @ row for row in centred)), sum(map(len, centred)))


def _product_of_two(row: Floats) -> float:
    """Mean product of two different tokens of the row: what any lag would show if their order did not matter. It holds
    the rows' own offsets, so a row that differs as a whole does not pass for correlation in time."""
    length = len(row)
    return float((row.sum() ** 2 - row @ row) / (length * (length - 1))) if length > 1 else 0.0


def autocorrelation(problems: Sequence[LagSums], bootstrap: Bootstrap) -> tuple[Floats, Floats]:
    """Autocorrelation at lags 1..L as it is and in random order, (1 + R, L) each; nan where nothing varies."""
    counts = np.array([sums.counts_L for sums in problems])
    squares, tokens = [sums.squares for sums in problems], [sums.tokens for sums in problems]
    variance = bootstrap.means(squares, tokens)[:, None]
    variance = np.where(variance > 0, variance, np.nan)
    as_it_is = bootstrap.means(np.array([sums.products_L for sums in problems]), counts) / variance
    return as_it_is, bootstrap.means(np.array([sums.shuffled_L for sums in problems]), counts) / variance
