"""Sampling for learnability (arXiv 2502.12272): prompts are drawn by p(1 - p), where p is the prompt's pass rate.

The one change versus GRPO is which prompts a step trains on. p(1 - p) is the variance of a right-or-wrong reward, so a
prompt that always or never succeeds, whose advantages are all 0, is hardly drawn. State kept: pass rates and visits.
The paper estimates p in rounds of rollouts of their own; here it is a moving average over the training rollouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s2l_ext.errors import ConfigError
from s2l_ext.methods.curriculum.pass_rates import PassRates, section


class Learnability:
    """Weight ``max(p (1 - p), floor)``; a step's prompts are distinct.

    Args:
        num_prompts: N, prompts in the data set.
        ema: share of the old pass rate that an update keeps, in [0, 1).
        floor: smallest weight, in (0, 0.25]: a prompt that always succeeds may be forgotten again.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(self, num_prompts: int, ema: float = 0.9, floor: float = 0.01) -> None:
        if not 0 < floor <= 0.25:
            raise ConfigError(f"s2l.curriculum.options.floor={floor}: use a weight above 0, at most 0.25 (p = 0.5).")
        self.floor = floor
        self.pass_rates = PassRates(num_prompts, ema=ema)  # under this name, so that the report draws them

    def weights(self) -> NDArray[np.float64]:
        """(N,) relative weights of the prompts now."""
        rates_N = self.pass_rates.rates
        return np.maximum(rates_N * (1 - rates_N), self.floor)

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """(n,) distinct prompts: the n smallest of Exp(1) / weight (Efraimidis and Spirakis 2006)."""
        keys_N = rng.standard_exponential(len(self.pass_rates)) / self.weights()
        return np.argsort(keys_N, kind="stable")[:n]

    def update(self, indices: ArrayLike, pass_rates: ArrayLike) -> None:
        """Pass rates (n,) that the prompts ``indices`` (n,) showed in this step."""
        self.pass_rates.update(indices, pass_rates)

    def metrics(self) -> dict[str, float]:
        """Those of the pass rates, and ``learnability_mean``; logged as ``s2l/curriculum/<name>``."""
        rates_N = self.pass_rates.rates
        return {**self.pass_rates.metrics(), "learnability_mean": float(np.mean(rates_N * (1 - rates_N)))}

    def state_dict(self) -> dict[str, Any]:
        return {"pass_rates": self.pass_rates.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; ValueError if it belongs to other data or is damaged."""
        self.pass_rates.load_state_dict(section(state, "pass_rates"))
