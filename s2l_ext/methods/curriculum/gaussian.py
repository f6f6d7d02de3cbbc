"""EXPO's Gaussian curriculum (arXiv 2605.09923, FG-ExPO arXiv 2605.11403; Eq. 6 and 7).

The one change versus GRPO is which prompts a step trains on: each draw takes prompt ``q`` with probability proportional
to ``exp(-(p_q - center)^2 / (2 sigma^2))``, where ``p_q`` is a moving average of its pass rate, 0.5 at the start. The
paper writes no more than ``Pr[q]``; here a step's prompts are distinct, as if each drawn prompt left the urn.
State kept: pass rates and visits of the N prompts. Everything else follows from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s2l_ext.errors import ConfigError
from s2l_ext.methods.curriculum.pass_rates import CHUNK, HISTOGRAM_BINS, Indices, PassRates, bin_of, chunks, section

Floats = NDArray[np.float64]

LEAST_WEIGHT = 2.0**-32
"""Relative to the largest possible weight: nothing becomes undrawable."""
REJECTION_FROM = 16
"""Prompts are proposed where N is at least this many times n; below it, visiting all of them costs less (measured by
``benchmarks/curriculum.py``)."""
PROPOSALS, MAX_ROUNDS = 2, 32
"""Proposals of a round for each prompt of a step, and rounds. A draw that would need more goes by blocks instead."""
BLOCK = 64
"""Prompts whose weights are summed together; a draw by blocks looks at single prompts of the blocks it chose."""


class Curriculum(Protocol):
    """What the trainer asks of an order of prompts."""

    def draw(self, n: int, rng: np.random.Generator) -> Indices:
        """(n,) distinct prompts of one step, in the order drawn."""

    def update(self, indices: ArrayLike, pass_rates: ArrayLike) -> None:
        """Pass rates (n,) in [0, 1] that the prompts ``indices`` (n,) showed in this step."""

    def metrics(self) -> dict[str, float]:
        """What to log, names without prefix."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values and numpy arrays."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""


def check_draw(n: int, num_prompts: int) -> None:
    """Raise ValueError unless ``n`` distinct prompts can be drawn."""
    if not 1 <= n <= num_prompts:
        raise ValueError(f"cannot draw n={n} distinct prompts from num_prompts={num_prompts}: 1 <= n <= num_prompts")


class GaussianCurriculum:
    """Draws prompts by a Gaussian of their pass rates, in time that does not depend on N while weights are alike.

    The same generator, pass rates, N and n give the same prompts.

    Args:
        num_prompts: N.
        center: pass rate of the largest weight, in [0, 1].
        sigma: width, > 0, in units of pass rate.
        ema: share of the old pass rate that an update keeps, in [0, 1).

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(self, num_prompts: int, center: float = 0.5, sigma: float = 0.35, ema: float = 0.9) -> None:
        if not (math.isfinite(sigma) and sigma > 0):
            raise ConfigError(f"sigma={sigma}: a width must be a finite number > 0. The paper has 0.35.")
        if not 0 <= center <= 1:
            raise ConfigError(f"center={center}: pass rates lie in [0, 1], so must the center. The paper has 0.5.")
        self.num_prompts = num_prompts
        self.center = center
        self.sigma = sigma
        self.pass_rates = PassRates(num_prompts, ema=ema)
        self._block_sums: Floats | None = None  # follow from the pass rates; made when a draw first needs them

    def weights(self, rates: ArrayLike) -> Floats:
        """Relative weights of pass rates, any shape: 1 at ``center``."""
        with np.errstate(over="ignore"):
            return np.exp(-0.5 * np.square((np.asarray(rates, dtype=np.float64) - self.center) / self.sigma))

    def probabilities(self) -> Floats:
        """(N,) probability with which each prompt would be the first of a draw now."""
        weight_N = self._weights_of(slice(None))
        return weight_N / weight_N.sum()

    def _weights_of(self, selection: slice | Indices) -> Floats:
        return np.maximum(self.weights(self.pass_rates.rates[selection]), LEAST_WEIGHT)

    # ---- drawing --------------------------------------------------------------------------------------------------

    def draw(self, n: int, rng: np.random.Generator) -> Indices:
        """(n,) distinct prompts in the order drawn: each by weight among those not drawn before. Three ways, one
        distribution: proposals, blocks where few proposals are kept, keys where N is not much larger than n.

        Raises:
            ValueError: ``n`` is below 1 or above the number of prompts.
        """
        check_draw(n, self.num_prompts)
        if self.num_prompts >= REJECTION_FROM * n:
            drawn_n = self._draw_by_rejection(n, rng)
            return drawn_n if drawn_n.size == n else self._draw_by_blocks(n, rng, drawn_n)
        return self._draw_by_keys(n, rng)

    def _draw_by_rejection(self, n: int, rng: np.random.Generator) -> Indices:
        """Any prompt is proposed, and kept with its weight as the probability unless it was drawn before. Fewer than n
        prompts where few proposals are kept; what is drawn then is the beginning of an exact draw."""
        drawn = np.zeros(0, np.int64)
        for number in range(1, MAX_ROUNDS + 1):
            proposed = rng.integers(self.num_prompts, size=PROPOSALS * n)
            kept = proposed[rng.random(proposed.size) < self._weights_of(proposed)]
            drawn = np.concatenate([drawn, kept])
            drawn = _first_of_each(drawn)[:n]
            if drawn.size == n or drawn.size * MAX_ROUNDS < n * number:
                break
        return drawn

    def _draw_by_blocks(self, n: int, rng: np.random.Generator, drawn: Indices) -> Indices:
        """Draws until there are n: blocks by their sums, then a prompt of each by its weight. What was drawn weighs
        nothing in the next round: draws with replacement whose repeats are skipped are draws without it."""
        sums = self._sums_of_blocks().copy()
        end = np.empty_like(sums)
        blocks = np.unique(drawn // BLOCK)
        sums[blocks] = _without(self._weights_of_blocks(blocks), blocks, drawn).sum(axis=1)
        while drawn.size < n:
            sums.cumsum(out=end)
            proposed = np.searchsorted(end, rng.random(PROPOSALS * (n - drawn.size)) * end[-1], side="right")
            blocks, row = np.unique(np.minimum(proposed, sums.size - 1), return_inverse=True)
            weight = _without(self._weights_of_blocks(blocks), blocks, drawn)
            within = weight.cumsum(axis=1)[row]
            place = (within <= (rng.random(row.size) * within[:, -1])[:, None]).sum(axis=1)
            item = np.minimum(blocks[row] * BLOCK + np.minimum(place, BLOCK - 1), self.num_prompts - 1)
            drawn = _first_of_each(np.concatenate([drawn, item]))[:n]
            sums[blocks] = _without(weight, blocks, drawn).sum(axis=1)
        return drawn

    def _sums_of_blocks(self) -> Floats:
        """(ceil(N / BLOCK),) summed weights."""
        if self._block_sums is None:
            blocks, size = np.arange(-(-self.num_prompts // BLOCK)), CHUNK // BLOCK
            parts = [blocks[start : start + size] for start in range(0, blocks.size, size)]
            self._block_sums = np.concatenate([self._weights_of_blocks(part).sum(axis=1) for part in parts])
        return self._block_sums

    def _weights_of_blocks(self, blocks: Indices) -> Floats:
        """(len(blocks), BLOCK) weights; 0 beyond the last prompt."""
        item = blocks[:, None] * BLOCK + np.arange(BLOCK)
        weight = self._weights_of(np.minimum(item, self.num_prompts - 1))
        weight[item >= self.num_prompts] = 0.0
        return weight

    def _draw_by_keys(self, n: int, rng: np.random.Generator) -> Indices:
        """The n smallest of Exp(1) / weight, ascending: the same distribution as drawing one after the other
        (Efraimidis and Spirakis 2006), whatever the weights."""
        key_n, item_n = np.zeros(0), np.zeros(0, np.int64)
        for part in chunks(self.num_prompts):
            key = rng.standard_exponential(part.stop - part.start) / self._weights_of(part)
            better = np.flatnonzero(key < (key_n.max() if key_n.size == n else np.inf))
            key_n, item_n = np.concatenate([key_n, key[better]]), np.concatenate([item_n, better + part.start])
            if key_n.size > n:
                smallest = np.argpartition(key_n, n - 1)[:n]
                key_n, item_n = key_n[smallest], item_n[smallest]
        return item_n[np.argsort(key_n, kind="stable")]

    # ---- learning -------------------------------------------------------------------------------------------------

    def update(self, indices: ArrayLike, pass_rates: ArrayLike) -> None:
        """Move the pass rates of ``indices`` (n,) toward ``pass_rates`` (n,): one visit each, all or none.

        Raises:
            ValueError: a prompt that does not exist or is given twice, or a pass rate that is NaN or outside [0, 1].
        """
        self.pass_rates.update(indices, pass_rates)
        if self._block_sums is not None:
            touched = np.unique(np.asarray(indices) // BLOCK)
            self._block_sums[touched] = self._weights_of_blocks(touched).sum(axis=1)

    def set_pass_rates(self, indices: ArrayLike, pass_rates: ArrayLike) -> None:
        """Warm start: replace pass rates (n,) without counting a visit.

        Raises:
            ValueError: as in :meth:`update`.
        """
        self.pass_rates.set_rates(indices, pass_rates)
        self._block_sums = None

    # ---- reports and state ----------------------------------------------------------------------------------------

    def bucket_mass(self, bins: int = HISTOGRAM_BINS) -> Floats:
        """(bins,) share of draw probability by pass rate, bins as in :meth:`PassRates.histogram`."""
        mass = np.zeros(bins)
        for part in chunks(self.num_prompts):
            bin_of_prompt = bin_of(self.pass_rates.rates[part], bins)
            mass += np.bincount(bin_of_prompt, weights=self._weights_of(part), minlength=bins)
        return mass / mass.sum()

    def effective_sample_size(self) -> float:
        """``(sum w)^2 / sum w^2``: N if all prompts are equally likely, 1 if one of them is certain."""
        first = second = 0.0
        for part in chunks(self.num_prompts):
            weight = self._weights_of(part)
            first, second = first + float(weight.sum()), second + float(np.square(weight).sum())
        return first**2 / second

    def metrics(self) -> dict[str, float]:
        """Those of :class:`PassRates` and ``effective_sample_size`` (prompts)."""
        return {**self.pass_rates.metrics(), "effective_sample_size": self.effective_sample_size()}

    def state_dict(self) -> dict[str, Any]:
        """Pass rates and visits; a resumed run draws what this one would have drawn."""
        return {"pass_rates": self.pass_rates.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: another number of prompts, a missing or a damaged array. Nothing is loaded.
        """
        self.pass_rates.load_state_dict(section(state, "pass_rates"))
        self._block_sums = None


def _first_of_each(values: Indices) -> Indices:
    """Without repeats, in the order in which they came."""
    return values[np.sort(np.unique(values, return_index=True)[1])]


def _without(weight: Floats, blocks: Indices, drawn: Indices) -> Floats:
    """``weight`` (len(blocks), BLOCK) with 0 for the prompts ``drawn``, in place. ``blocks`` ascend."""
    if blocks.size:
        row = np.minimum(np.searchsorted(blocks, drawn // BLOCK), blocks.size - 1)
        known = blocks[row] == drawn // BLOCK
        weight[row[known], drawn[known] % BLOCK] = 0.0
    return weight
