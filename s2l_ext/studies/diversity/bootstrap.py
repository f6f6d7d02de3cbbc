"""Bootstrap over problems. Every set of samples is resampled alike, so that differences are paired."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s2l_ext.evaluation.intervals import FEWEST, bootstrap_tail

Floats = NDArray[np.floating]
RESAMPLES = 2000


class Bootstrap:
    """Weights of P problems: row 0 takes each once, and R rows are resamples."""

    def __init__(self, num_problems: int, seed: int = 0, resamples: int = RESAMPLES) -> None:
        self.tail, self.enough = bootstrap_tail(num_problems), num_problems >= FEWEST
        rng = np.random.default_rng(seed)
        drawn_R_P = rng.multinomial(num_problems, np.full(num_problems, 1 / num_problems), size=resamples)
        self.weights = np.vstack([np.ones(num_problems), drawn_R_P])

    def means(self, total: ArrayLike, count: ArrayLike | None = None) -> Floats:
        """Sum of ``total`` over sum of ``count``: (1 + R,) for (P,), (1 + R, K) for (P, K); no count is nan.

        Args:
            total: a value that is nan is left out.
            count: None weighs every value that is there alike.
        """
        values = np.asarray(total, dtype=float)
        counts = np.ones_like(values) if count is None else np.asarray(count, dtype=float)
        known = ~np.isnan(values)
        above, below = self.weights @ np.where(known, values, 0.0), self.weights @ np.where(known, counts, 0.0)
        return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)

    def point(self, means: Floats) -> dict[str, Any]:
        """``value`` and ``ci95`` of (1 + R,): None where there is nothing to measure."""
        low, high = self._interval(means)
        return {"value": _or_none(means[0]), "ci95": None if np.isnan(means[0]) else [_or_none(low), _or_none(high)]}

    def curve(self, means: Floats) -> dict[str, list[float | None]]:
        """``values``, ``low`` and ``high`` of (1 + R, K), None where there is nothing to measure."""
        low, high = self._interval(means)
        named = {"values": means[0], "low": low, "high": high}
        return {name: [_or_none(value) for value in values] for name, values in named.items()}

    def is_clear(self, means: Floats) -> bool:
        """Whether the 95 % interval of (1 + R,) lies on one side of 0, and there are six problems or more."""
        low, high = self._interval(means)
        return self.enough and bool(low > 0 or high < 0)

    def _interval(self, means: Floats) -> Floats:
        """(2,) or (2, K). Resamples without anything to measure are left out."""
        columns = means[1:].reshape(len(means) - 1, -1)
        ends = self.tail, 1 - self.tail
        found = [
            np.quantile(known, ends) if (known := column[~np.isnan(column)]).size else np.full(2, np.nan)
            for column in columns.T
        ]
        return np.array(found).T.reshape(2, *means.shape[1:])


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
