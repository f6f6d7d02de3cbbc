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
from s2l_ext.methods.curriculum.pass_rates import HISTOGRAM_BINS, PassRates, bin_of, section
from s2l_ext.methods.curriculum.sum_tree import FIXED_POINT, Indices, SumTree, chunks, fixed_point

Floats = NDArray[np.float64]

TREE_FROM = 64
"""The tree draws where N is at least this many times n; below it, visiting all prompts costs less (measured by
``benchmarks/curriculum.py``)."""
MAX_ROUNDS = 8
"""Rounds of the tree before the rest of a step is drawn by visiting all prompts. Weights span 32 powers of two and a
round of n draws exhausts about log2(n) of them, so that few steps come to that."""


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
    """Draws prompts by a Gaussian of their pass rates, in time that hardly depends on N.

    Weights are rounded to multiples of 2**-32 of the largest possible one and are at least that, so that no prompt is
    ever out of reach. The same seed, pass rates, N and n give the same prompts.

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
        self._tree: SumTree | None = None
        self._tree_version = 0

    @property
    def nbytes(self) -> int:
        """Bytes of pass rates, visits and, once it is needed, the tree."""
        return self.pass_rates.nbytes + (self._tree.nbytes if self._tree else 0)

    def weights(self, rates: ArrayLike) -> Floats:
        """Relative weights of pass rates, any shape: 1 at ``center``."""
        with np.errstate(over="ignore"):
            return np.exp(-0.5 * np.square((np.asarray(rates, dtype=np.float64) - self.center) / self.sigma))

    def probabilities(self) -> Floats:
        """(N,) probability with which each prompt would be the first of a draw now."""
        weight_N = np.concatenate([self._integer_weights(part) for part in chunks(self.num_prompts)])
        return weight_N / weight_N.sum()

    def _integer_weights(self, selection: slice | Indices) -> Indices:
        return fixed_point(self.weights(self.pass_rates.rates[selection]))

    # ---- drawing --------------------------------------------------------------------------------------------------

    def draw(self, n: int, rng: np.random.Generator) -> Indices:
        """(n,) distinct prompts in the order drawn: each by weight among those not drawn before.

        Raises:
            ValueError: ``n`` is below 1 or above the number of prompts.
        """
        check_draw(n, self.num_prompts)
        drawn_n = np.zeros(0, np.int64)
        if self.num_prompts >= TREE_FROM * n:
            drawn_n = self._draw_by_tree(n, rng)
        if drawn_n.size < n:
            drawn_n = np.concatenate([drawn_n, self._draw_by_keys(n - drawn_n.size, rng, drawn_n)])
        return drawn_n

    def _draw_by_tree(self, n: int, rng: np.random.Generator) -> Indices:
        """Rounds of draws with replacement, repeats skipped, each without the prompts of the rounds before. Fewer than
        n prompts if even then a few hold nearly all weight, round after round."""
        tree, drawn = self._current_tree(), np.zeros(0, np.int64)
        for _ in range(MAX_ROUNDS):
            missing = n - drawn.size
            fresh = tree.draw(missing + missing // 16 + 16, rng, without=drawn)
            drawn = np.concatenate([drawn, fresh[np.sort(np.unique(fresh, return_index=True)[1])]])
            if drawn.size >= n:
                break
        return drawn[:n]

    def _draw_by_keys(self, n: int, rng: np.random.Generator, without: Indices) -> Indices:
        """The n smallest of Exp(1) / weight, ascending: the same distribution as drawing one after the other
        (Efraimidis and Spirakis 2006), whatever the weights."""
        key_n, item_n = np.zeros(0), np.zeros(0, np.int64)
        for part in chunks(self.num_prompts):
            key = rng.standard_exponential(part.stop - part.start) / self._integer_weights(part)
            key[without[(without >= part.start) & (without < part.stop)] - part.start] = np.inf
            better = np.flatnonzero(key < (key_n.max() if key_n.size == n else np.inf))
            key_n, item_n = np.concatenate([key_n, key[better]]), np.concatenate([item_n, better + part.start])
            if key_n.size > n:
                smallest = np.argpartition(key_n, n - 1)[:n]
                key_n, item_n = key_n[smallest], item_n[smallest]
        return item_n[np.argsort(key_n, kind="stable")]

    def _current_tree(self) -> SumTree:
        if self._tree is None or self._tree_version != self.pass_rates.version:
            self._tree = SumTree(self.num_prompts, self._integer_weights)
            self._tree_version = self.pass_rates.version
        return self._tree

    # ---- learning -------------------------------------------------------------------------------------------------

    def update(self, indices: ArrayLike, pass_rates: ArrayLike) -> None:
        """Move the pass rates of ``indices`` (n,) toward ``pass_rates`` (n,): one visit each, all or none.

        Raises:
            ValueError: a prompt that does not exist or is given twice, or a pass rate that is NaN or outside [0, 1].
        """
        if self._tree is None or self._tree_version != self.pass_rates.version:
            self.pass_rates.update(indices, pass_rates)
            return
        index_n, rate_n = self.pass_rates.check(indices, pass_rates)
        before_n = self._integer_weights(index_n)
        self.pass_rates.update(index_n, rate_n)
        self._tree.change(index_n, before_n, self._integer_weights(index_n))
        self._tree_version = self.pass_rates.version

    def set_pass_rates(self, indices: ArrayLike, pass_rates: ArrayLike) -> None:
        """Warm start: replace pass rates (n,) without counting a visit.

        Raises:
            ValueError: as in :meth:`update`.
        """
        self.pass_rates.set_rates(indices, pass_rates)

    # ---- reports and state ----------------------------------------------------------------------------------------

    def bucket_mass(self, bins: int = HISTOGRAM_BINS) -> Floats:
        """(bins,) share of draw probability by pass rate, bins as in :meth:`PassRates.histogram`."""
        mass = np.zeros(bins)
        for part in chunks(self.num_prompts):
            bin_of_prompt = bin_of(self.pass_rates.rates[part], bins)
            mass += np.bincount(bin_of_prompt, weights=self._integer_weights(part), minlength=bins)
        return mass / mass.sum()

    def effective_sample_size(self) -> float:
        """``(sum w)^2 / sum w^2``: N if all prompts are equally likely, 1 if one of them is certain."""
        first = second = 0.0
        for part in chunks(self.num_prompts):
            weight = self._integer_weights(part) / FIXED_POINT
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
