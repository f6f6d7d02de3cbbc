"""Exact weighted sampling over many items without a stored array of weights.

Weights are whole numbers (32-bit fixed point), summed in a tree of fan-out 64 whose leaves the owner computes when they
are needed. Integer sums do not drift: a tree built afresh equals, bit for bit, one that followed any number of changes.
Memory is N / 63 sums of 8 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Weights = Callable[["slice | Indices"], Indices]

FAN_OUT = 64
TOP_SIZE = 4096
"""The top level has at most so many nodes; one cumulative sum over it costs less than another level."""
CHUNK = 1 << 16
"""Items handled at once where all are visited: temporaries stay in the cache. A multiple of FAN_OUT."""
DRAWS = 2048
"""Draws descended at once, for the same reason: each gathers FAN_OUT weights per level."""
FIXED_POINT = 2.0**32
MAX_ITEMS = 2**31 - 1
"""More items of the largest weight would overflow a sum of 64 bits."""


def chunks(num_items: int) -> Iterator[slice]:
    """Consecutive slices of at most CHUNK items that cover 0 to ``num_items``."""
    for start in range(0, num_items, CHUNK):
        yield slice(start, min(start + CHUNK, num_items))


def fixed_point(relative: NDArray[np.float64]) -> Indices:
    """``max(1, round(w * 2**32))`` of weights relative to the largest, any shape: nothing becomes undrawable."""
    return np.maximum(np.rint(relative * FIXED_POINT).astype(np.int64), 1)


class SumTree:
    """Sums of weights over blocks of 64, 64**2, ... items.

    Args:
        num_items: N, at least 1.
        weights: weights, int64 in [0, 2**32], of the items that a slice or an index array of any shape selects. Must
            give the same weight for an item whatever else is selected.

    Raises:
        ValueError: ``num_items`` is below 1 or above 2**31 - 1.
    """

    def __init__(self, num_items: int, weights: Weights) -> None:
        if not 1 <= num_items <= MAX_ITEMS:
            raise ValueError(f"num_items={num_items} must be between 1 and {MAX_ITEMS}")
        self.num_items = num_items
        self.weights = weights
        self.levels = [_padded(np.concatenate([_block_sums(weights(part)) for part in chunks(num_items)]))]
        while self.levels[-1].size > TOP_SIZE:
            self.levels.append(_padded(_block_sums(self.levels[-1])))

    @property
    def total(self) -> int:
        """Sum of all weights."""
        return int(self.levels[-1].sum())

    @property
    def nbytes(self) -> int:
        """Bytes that the sums occupy."""
        return sum(level.nbytes for level in self.levels)

    def draw(self, n: int, rng: np.random.Generator, without: Indices | None = None) -> Indices:
        """(n,) items with replacement, n at least 1; Pr[item] is exactly weight / total.

        Args:
            without: distinct items to leave out, as if their weight were 0.

        Raises:
            ValueError: every weight is 0.
            RuntimeError: weights were changed without :meth:`change`.
        """
        left_out = np.zeros(0, np.int64) if without is None else without
        weight, nothing = self.weights(left_out), np.zeros_like(left_out)
        self.change(left_out, weight, nothing)
        try:
            return np.concatenate(
                [self._draw_part(min(DRAWS, n - start), left_out, rng) for start in range(0, n, DRAWS)]
            )
        finally:
            self.change(left_out, nothing, weight)

    def _draw_part(self, n: int, left_out: Indices, rng: np.random.Generator) -> Indices:
        top = self.levels[-1].cumsum()
        if top[-1] == 0:
            raise ValueError(f"all {self.num_items - left_out.size} weights are 0: nothing can be drawn")
        rest_n = rng.integers(0, top[-1], size=n)
        node_n = np.searchsorted(top, rest_n, side="right")
        rest_n -= top[node_n] - self.levels[-1][node_n]
        for level in reversed(self.levels[:-1]):
            node_n, rest_n = _descend(level.reshape(-1, FAN_OUT)[node_n], node_n, rest_n)
        return _descend(self._leaves(node_n, left_out), node_n, rest_n)[0]

    def _leaves(self, node_n: Indices, left_out: Indices) -> Indices:
        item_n_64 = node_n[:, None] * FAN_OUT + np.arange(FAN_OUT)
        weight_n_64 = self.weights(np.minimum(item_n_64, self.num_items - 1))
        weight_n_64[item_n_64 >= self.num_items] = 0
        touched = np.flatnonzero(np.isin(node_n, left_out // FAN_OUT))
        weight_n_64[touched] *= ~np.isin(item_n_64[touched], left_out)
        return weight_n_64

    def change(self, indices: Indices, old_weights: Indices, new_weights: Indices) -> None:
        """Follow a change of weights, (n,) each, that the owner has made or is about to make."""
        node_n, difference_n = indices, new_weights - old_weights
        for level in self.levels:
            node_n = node_n // FAN_OUT
            np.add.at(level, node_n, difference_n)


def _padded(values: Indices) -> Indices:
    """With zeros up to a multiple of FAN_OUT."""
    missing = -values.size % FAN_OUT
    return np.concatenate([values, np.zeros(missing, np.int64)]) if missing else values


def _block_sums(values: Indices) -> Indices:
    return _padded(values).reshape(-1, FAN_OUT).sum(axis=1)


def _descend(weight_n_64: Indices, node_n: Indices, rest_n: Indices) -> tuple[Indices, Indices]:
    """The child of each node in which ``rest`` lies, and what of ``rest`` lies inside that child."""
    sum_n_64 = weight_n_64.cumsum(axis=1)
    child_n = np.count_nonzero(sum_n_64 <= rest_n[:, None], axis=1)
    if child_n.max(initial=0) == FAN_OUT:
        raise RuntimeError("weights differ from their sums: they were changed without SumTree.change")
    row_n = np.arange(child_n.size)
    before_n = sum_n_64[row_n, child_n] - weight_n_64[row_n, child_n]
    return node_n * FAN_OUT + child_n, rest_n - before_n
