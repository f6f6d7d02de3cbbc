"""What is known of every prompt's difficulty: a moving average of its pass rate, and how often it was visited.

State kept: (N,) float64 pass rates and (N,) int32 visits, 12 bytes a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s2l_ext.errors import ConfigError

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

HISTOGRAM_BINS = 20
START = 0.5
"""Pass rate of a prompt that was never visited, as in the paper."""
QUANTILES = (10, 25, 50, 75, 90)
CHUNK = 1 << 16
"""Prompts handled at once where all are visited: temporaries stay in the cache."""


def chunks(num_items: int) -> Iterator[slice]:
    """Consecutive slices of at most CHUNK items that cover 0 to ``num_items``."""
    for start in range(0, num_items, CHUNK):
        yield slice(start, min(start + CHUNK, num_items))


def bin_of(rates: Floats, bins: int) -> Indices:
    """Bin of each pass rate, any shape: ``[k / bins, (k + 1) / bins)``, the last one closed at 1."""
    return np.minimum((rates * bins).astype(np.int64), bins - 1)


def section(state: Mapping[str, Any], name: str) -> Any:
    """Part ``name`` of a saved state; ValueError if there is none."""
    if name not in state:
        raise ValueError(f"the saved state has no {name!r}, only {sorted(state)}")
    return state[name]


class PassRates:
    """Exponential moving average of the pass rate of each of N prompts; an update keeps the share ``ema``, in [0, 1),
    of the old value. Raises ConfigError: an argument is out of range."""

    def __init__(self, num_prompts: int, ema: float = 0.9) -> None:
        if num_prompts < 1:
            raise ConfigError(f"num_prompts={num_prompts}: use 1 prompt or more; is the data set empty?")
        if not 0 <= ema < 1:
            raise ConfigError(
                f"ema={ema}: the share of the old value that is kept must be in [0, 1). The paper has 0.9."
            )
        self.ema = ema
        self.rates: Floats = np.full(num_prompts, START)
        self.visits: NDArray[np.int32] = np.zeros(num_prompts, np.int32)

    def __len__(self) -> int:
        return self.rates.size

    def update(self, indices: ArrayLike, pass_rates: ArrayLike) -> None:
        """One visit each: ``ema * old + (1 - ema) * new`` (n,); all of them or, on an error, none. Raises ValueError:
        as in :meth:`check`."""
        index_n, new_n = self.check(indices, pass_rates)
        self.rates[index_n] = self.ema * self.rates[index_n] + (1 - self.ema) * new_n
        self.visits[index_n] += 1

    def set_rates(self, indices: ArrayLike, rates: ArrayLike) -> None:
        """Replace pass rates (n,), for instance by those of an earlier run. It is no visit. Raises ValueError: as in
        :meth:`check`."""
        index_n, new_n = self.check(indices, rates)
        self.rates[index_n] = new_n

    def check(self, indices: ArrayLike, pass_rates: ArrayLike) -> tuple[Indices, Floats]:
        """Both as (n,) arrays. Raises ValueError: shapes differ, or an index is no whole number, out of range or given
        twice, or a pass rate is NaN or outside [0, 1]. Names the value and its position."""
        index_n, rate_n = np.asarray(indices), np.asarray(pass_rates, dtype=np.float64)
        if index_n.ndim != 1 or index_n.shape != rate_n.shape:
            raise ValueError(f"indices of shape {index_n.shape} and pass rates of shape {rate_n.shape}: one rate each")
        if index_n.size and index_n.dtype.kind not in "iu":
            raise ValueError(f"indices are {index_n.dtype}, positions of prompts are whole numbers")
        index_n = index_n.astype(np.int64)
        _refuse(index_n, (index_n < 0) | (index_n >= len(self)), "indices", f"prompts go from 0 to {len(self) - 1}")
        _refuse(index_n, _repeated(index_n), "indices", "the same prompt was given before")
        _refuse(rate_n, ~((rate_n >= 0) & (rate_n <= 1)), "pass_rates", "a pass rate lies in [0, 1]")
        return index_n, rate_n

    def histogram(self, bins: int = HISTOGRAM_BINS) -> Indices:
        """(bins,) prompts by pass rate, bins as in :func:`bin_of`."""
        return np.bincount(bin_of(self.rates, bins), minlength=bins)

    def quantiles(self, percents: Sequence[float] = QUANTILES) -> Floats:
        """Smallest pass rate that at least ``percents`` % of the prompts do not exceed."""
        rank = np.maximum(np.ceil(np.asarray(percents) * len(self) / 100).astype(np.int64), 1) - 1
        ordered: Floats = np.partition(self.rates, rank)
        return ordered[rank]

    def visit_counts(self, limit: int = 50) -> Indices:
        """(limit + 1,) prompts that were visited 0, 1, ... times; the last entry is ``limit`` or more."""
        return np.bincount(np.minimum(self.visits, limit), minlength=limit + 1)

    def metrics(self) -> dict[str, float]:
        """Mean, quantiles and histogram (shares) of the pass rates; visits. Names without prefix."""
        quantiles = zip(QUANTILES, self.quantiles(), strict=True)
        shares = self.histogram() / len(self)
        return {
            "pass_rate_mean": float(self.rates.mean()),
            **{f"pass_rate_q{percent}": float(value) for percent, value in quantiles},
            "never_seen_share": float(np.count_nonzero(self.visits == 0) / len(self)),
            "visits_mean": float(self.visits.mean()),
            **{f"pass_rate_hist/{index:02d}": float(share) for index, share in enumerate(shares)},
        }

    def state_dict(self) -> dict[str, Any]:
        """Copies of ``rates`` (N,) float64 and ``visits`` (N,) int32."""
        return {"rates": self.rates.copy(), "visits": self.visits.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`. Raises ValueError: an array is missing, of another length or dtype, or has
        impossible values. Nothing is loaded."""
        rates, visits = self._saved(state, "rates", self.rates), self._saved(state, "visits", self.visits)
        if not (rates.min() >= 0 and rates.max() <= 1 and visits.min() >= 0):
            raise ValueError("saved pass rates must lie in [0, 1] and saved visits be 0 or more; the state is damaged")
        self.rates[:], self.visits[:] = rates, visits

    @staticmethod
    def _saved(state: Mapping[str, Any], name: str, like: NDArray[Any]) -> NDArray[Any]:
        saved = np.asarray(section(state, name))
        if saved.shape != like.shape or saved.dtype != like.dtype:
            raise ValueError(
                f"saved {name}: {saved.dtype} of shape {saved.shape}, this data set needs {like.dtype} of shape "
                f"{like.shape}"
            )
        return saved


def _repeated(index_n: Indices) -> NDArray[np.bool_]:
    """True where a value occurred before."""
    repeated = np.ones(index_n.size, bool)
    repeated[np.unique(index_n, return_index=True)[1]] = False
    return repeated


def _refuse(values: NDArray[Any], bad: NDArray[np.bool_], name: str, reason: str) -> None:
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(f"{name}[{first}]={values[first]}: {reason} ({int(bad.sum())} of {bad.size} are like this)")
