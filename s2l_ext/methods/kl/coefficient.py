"""EXPO's accuracy-conditioned KL (FG-ExPO, papers.md section 2; Eq. 4, 5, 8), and two coefficients to compare it with.

The one change versus GRPO with a KL term in the loss is its coefficient: ``beta_eff = beta * rho(accuracy)`` from the
verifier accuracy of the current batch, one value for every mini-batch and epoch of the step. State kept: none for
``constant`` and ``accuracy``; the coefficient and the summed error for ``adaptive_target``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from s2l_ext.errors import ConfigError, StateMismatch

Rho = Callable[[float], float]
CHECK_POINTS = 101
MAX_ERROR = 0.2
"""The relative error is clipped to this in each step, as in PPO's controller (arXiv 1909.08593, section 2.2)."""


def tanh_rho(accuracy: float) -> float:
    """The paper's shape: 0.5 at accuracy 0, 0.731 at 0.5, 0.881 at 1."""
    return (math.tanh(accuracy) + 1.0) / 2.0


@dataclass(frozen=True)
class PowerRho:
    """``low + (high - low) * accuracy ** exponent``; exponent 1 is linear. Not in the paper."""

    low: float = 0.5
    high: float = 1.0
    exponent: float = 1.0

    def __call__(self, accuracy: float) -> float:
        return self.low + (self.high - self.low) * accuracy**self.exponent


def check_rho(rho: Rho, name: str) -> None:
    """Raise ConfigError unless ``rho`` is finite, positive and nowhere falling on 0, 0.01, ..., 1."""
    grid = [step / (CHECK_POINTS - 1) for step in range(CHECK_POINTS)]
    try:
        values = [float(rho(x)) for x in grid]
    except Exception as error:
        raise ConfigError(f"{name} cannot be called with an accuracy ({type(error).__name__}: {error}).") from error
    for x, value in zip(grid, values, strict=True):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name}: rho({x:g}) = {value:g} must be a positive number: it scales the KL term.")
    for x, left, right in zip(grid[1:], values, values[1:], strict=False):
        if right < left:
            raise ConfigError(f"{name}: rho falls from {left:g} to {right:g} at accuracy {x:g}: it must not decrease.")


class ConstantKL:
    """The same coefficient at every step; what the trainer asks of every coefficient."""

    def __init__(self, beta: float = 0.02) -> None:
        if not (math.isfinite(beta) and beta >= 0):
            raise ConfigError(f"beta={beta}: the KL coefficient must be a number >= 0 (the paper: 0.02).")
        self.beta = beta

    def coefficient(self, accuracy: float | None = None) -> float:
        """Coefficient of this step's KL term."""
        return self.beta

    def observe(self, kl: float) -> None:
        """The KL that this step's update reported, in nats per token."""

    def metrics(self) -> dict[str, float]:
        """What else to log, names without prefix."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""


class AccuracyConditionedKL(ConstantKL):
    """``beta * rho(accuracy)``; stateless: the same batch gives the same coefficient.

    Args:
        beta: coefficient before rho, >= 0; the paper's 0.02 gives 0.0100 to 0.0176.
        rho: positive, non-decreasing function of an accuracy in [0, 1].
        name: what messages call ``rho``.

    Raises:
        ConfigError: a negative ``beta``, or a ``rho`` that falls or is not positive.
    """

    def __init__(self, beta: float = 0.02, rho: Rho = tanh_rho, name: str = "rho") -> None:
        super().__init__(beta)
        check_rho(rho, name)
        self.rho = rho
        self.applied_rho = math.nan

    def coefficient(self, accuracy: float | None = None) -> float:
        if accuracy is None or not 0.0 <= accuracy <= 1.0:
            raise ValueError(f"accuracy={accuracy}: the share of correct rollouts of a batch lies in [0, 1]")
        self.applied_rho = float(self.rho(accuracy))
        return self.beta * self.applied_rho

    def metrics(self) -> dict[str, float]:
        return {"rho": self.applied_rho}


class AdaptiveTargetKL(ConstantKL):
    """Moves the coefficient so that the KL stays near ``target``: PPO's controller, with an optional integral term.

    After every step ``beta *= 1 + gain * (e + integral * sum(e))`` with ``e = clip(KL / target - 1, -0.2, 0.2)`` and
    the sum held in [-1, 1]. With ``integral`` 0 this is the proportional controller of arXiv 1909.08593.

    Args:
        beta: coefficient of the first step, > 0 (the controller multiplies).
        target: KL to hold, nats per token, > 0.
        gain: rollout rows of a step over the horizon, > 0.
        integral: weight of the summed error, >= 0.

    Raises:
        ConfigError: an argument out of range, or a gain that could turn the coefficient negative.
    """

    def __init__(self, beta: float, target: float, gain: float, integral: float = 0.0) -> None:
        if not target > 0:
            raise ConfigError(f"target={target}: the KL to hold must be > 0 nats per token.")
        super().__init__(beta)
        if beta == 0:
            raise ConfigError(f"beta={beta}: the controller multiplies the coefficient, so it must start above 0.")
        if not 0 < gain * (MAX_ERROR + integral) < 1:
            raise ConfigError(
                f"gain={gain:g} (rows of a step / horizon) with integral={integral:g} could move the coefficient by "
                f"{gain * (MAX_ERROR + integral):.0%} in a step: it must be above 0 and below 100 %. Raise the horizon."
            )
        self.target, self.gain, self.integral = target, gain, integral
        self.summed_error = 0.0

    def observe(self, kl: float) -> None:
        if not math.isfinite(kl):
            raise ValueError(f"KL={kl}: the update reported no finite KL, so the coefficient cannot follow it")
        error = min(max(kl / self.target - 1.0, -MAX_ERROR), MAX_ERROR)
        self.summed_error = min(max(self.summed_error + error, -1.0), 1.0)
        self.beta *= 1.0 + self.gain * (error + self.integral * self.summed_error)

    def metrics(self) -> dict[str, float]:
        return {"target": self.target, "summed_error": self.summed_error}

    def state_dict(self) -> dict[str, Any]:
        return {"beta": self.beta, "summed_error": self.summed_error}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state) != {"beta", "summed_error"}:
            raise StateMismatch(f"the KL controller's state has the keys {sorted(state)}, wanted beta, summed_error")
        self.beta, self.summed_error = float(state["beta"]), float(state["summed_error"])
