"""pass@k curves, and which explorer they recommend; intervals by bootstrap over problems."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s2l_ext.evaluation.intervals import FEWEST, bootstrap_tail
from s2l_ext.evaluation.metrics import pass_at_k

Floats = NDArray[np.floating]
RESAMPLES = 2000
HALF = 0.5


class Bootstrap:
    """Weights of P problems: row 0 takes each once, and R rows are resamples. Every set of samples is resampled alike,
    so that differences are paired."""

    def __init__(self, num_problems: int, seed: int = 0, resamples: int = RESAMPLES) -> None:
        self.tail = bootstrap_tail(num_problems)
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

    def is_clear(self, difference_P: Floats) -> bool:
        """Whether the 95 % interval of the mean difference lies on one side of 0, and six problems or more differ."""
        low, high = self._interval(self.means(difference_P))
        return bool(np.count_nonzero(difference_P) >= FEWEST and (low > 0 or high < 0))

    def _interval(self, means: Floats) -> Floats:
        """(2,) or (2, K). Resamples without anything to measure are left out."""
        with warnings.catch_warnings(action="ignore"):  # of columns without any
            return np.nanquantile(means[1:], (self.tail, 1 - self.tail), axis=0)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


# ---- pass@k ----------------------------------------------------------------------------------------------------------


def pass_curves(num_correct: Sequence[int], n: int) -> Floats:
    """(P, n) unbiased pass@k of each problem, k = 1..n."""
    return np.array([[pass_at_k(n, correct, k) for k in range(1, n + 1)] for correct in num_correct])


def half_position(shares_K: Floats) -> float:
    """The first position, from 1, that fewer than half of the pairs reach together; nan when none is."""
    below = np.flatnonzero(shares_K < HALF)
    return float(below[0] + 1) if below.size else float("nan")


def recommend(
    curves: Mapping[str, Floats], learner: str, explorers: Sequence[str], noise: str | None, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Which explorer finds a right answer most often within one group of n: ``explorer`` (None: no clear winner, or
    none better than the learner), ``clear`` and a ``sentence`` with the numbers.

    Args:
        curves: (P, n) pass@k by set; the paired differences of the last column decide.
        noise: the learner at high temperature, to compare with; it is no candidate.
    """
    n = curves[learner].shape[1]
    at_n = {name: curve[:, -1] for name, curve in curves.items()}
    mean = {name: float(values.mean()) for name, values in at_n.items()}
    best, *rest = sorted(explorers, key=lambda name: -mean[name])
    gain = at_n[best] - at_n[learner]
    numbers = f"pass@{n} {mean[best]:.3f} against {mean[learner]:.3f} of {learner}, {_difference(gain, bootstrap)}"
    rivals = [name for name in rest if not bootstrap.is_clear(at_n[best] - at_n[name])]
    if not bootstrap.is_clear(gain):
        few = np.count_nonzero(gain) < FEWEST
        why = f"fewer than {FEWEST} problems differ, so no verdict" if few else "the interval holds 0"
        why = why if mean[learner] < 1 else "the learner solves every problem; take harder ones"
        return _verdict(None, False, f"No clear winner: {best} has {numbers}; {why}")
    if mean[best] < mean[learner]:
        return _verdict(None, True, f"None of them: {best}, the best explorer, has {numbers}")
    if rivals:
        against = f"{rivals[0]} ({mean[rivals[0]]:.3f}, {_difference(at_n[best] - at_n[rivals[0]], bootstrap)})"
        return _verdict(None, False, f"No clear winner: {best} has {numbers}, but is not clearly better than {against}")
    return _verdict(best, True, f"Use {best}: {numbers}{_against_noise(at_n, best, noise, bootstrap)}")


def _against_noise(at_n: Mapping[str, Floats], best: str, noise: str | None, bootstrap: Bootstrap) -> str:
    if noise is None:
        return ""
    more = at_n[best] - at_n[noise]
    clear = "" if bootstrap.is_clear(more) else "; noise in the tokens may do as well"
    return f"; over {noise} {_difference(more, bootstrap)}{clear}"


def _difference(difference_P: Floats, bootstrap: Bootstrap) -> str:
    found = bootstrap.point(bootstrap.means(difference_P))
    low, high = found["ci95"]
    return f"{found['value']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _verdict(explorer: str | None, clear: bool, sentence: str) -> dict[str, Any]:
    return {"explorer": explorer, "clear": clear, "sentence": f"{sentence}."}
