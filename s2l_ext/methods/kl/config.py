"""The block ``s2l.kl``: one class for each ``type``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from s2l_ext.config.limits import limited
from s2l_ext.config.parse import refuse_changed
from s2l_ext.config.resolve import resolve
from s2l_ext.errors import ConfigError
from s2l_ext.methods.kl.coefficient import (
    AccuracyConditionedKL,
    AdaptiveTargetKL,
    ConstantKL,
    PowerRho,
    Rho,
    tanh_rho,
)

RHO_SHAPES = ("tanh", "linear", "power")


@dataclass(frozen=True)
class KLConfig(ABC):
    """EXPO: the coefficient of the KL term in the loss. It replaces ``actor.kl_loss_coef``."""

    type: str
    """``accuracy``: from the batch's accuracy. ``constant``: always ``beta``. ``adaptive_target``: holds the
    measured KL at ``target``."""
    beta: float = limited(0.02, at_least=0)
    """Coefficient before ``rho``; the start value of ``adaptive_target``."""

    @abstractmethod
    def build(self, rows: int) -> ConstantKL:
        """The controller that the block describes; ConfigError names the key. ``rows``: rollout rows of a step."""

    @abstractmethod
    def in_words(self, rows: int) -> str:
        """What the printed plan says of the coefficient."""


@dataclass(frozen=True)
class AccuracyKLConfig(KLConfig):
    """``beta * rho(accuracy)``, from the accuracy of the batch that is trained on."""

    type: Literal["accuracy"] = "accuracy"
    rho: str = "tanh"
    """Factor of ``beta`` by accuracy: ``tanh`` (the paper's), ``linear``, ``power``, or ``pkg.module:function``."""
    rho_low: float = limited(0.5, above=0)
    """Factor at accuracy 0 (``linear`` and ``power``)."""
    rho_high: float = limited(1.0, above=0)
    """Factor at accuracy 1 (``linear`` and ``power``)."""
    rho_exponent: float = limited(2.0, above=0)
    """Exponent of the accuracy (``power``)."""

    def build(self, rows: int) -> AccuracyConditionedKL:
        return AccuracyConditionedKL(self.beta, self._rho(), name=f"s2l.kl.rho={self.rho}")

    def in_words(self, rows: int) -> str:
        controller = self.build(rows)
        low, high = controller.coefficient(0.0), controller.coefficient(1.0)
        return f"in the loss, {self.beta:g} x rho(accuracy), rho={self.rho}: {low:.4g} to {high:.4g}"

    def _rho(self) -> Rho:
        why = f"s2l.kl.rho={self.rho}"
        if self.rho == "power":
            return PowerRho(self.rho_low, self.rho_high, self.rho_exponent)
        refuse_changed(self, ["rho_exponent"], "s2l.kl", f"{why}: rho=power reads it")
        if self.rho == "linear":
            return PowerRho(self.rho_low, self.rho_high)
        refuse_changed(self, ["rho_low", "rho_high"], "s2l.kl", f"{why}: rho=linear and rho=power read it")
        if self.rho == "tanh":
            return tanh_rho
        function = resolve(self.rho, "s2l.kl.rho", RHO_SHAPES)
        if not callable(function):
            raise ConfigError(f"{why} is a {type(function).__name__}: it must be a function of the accuracy.")
        return function


@dataclass(frozen=True)
class ConstantKLConfig(KLConfig):
    """The same coefficient at every step."""

    type: Literal["constant"] = "constant"

    def build(self, rows: int) -> ConstantKL:
        return ConstantKL(self.beta)

    def in_words(self, rows: int) -> str:
        return f"{self.beta:g} in the loss"


@dataclass(frozen=True, kw_only=True)
class AdaptiveTargetKLConfig(KLConfig):
    """The coefficient rises while the measured KL is above ``target``, else it falls: verl's ``algorithm.kl_ctrl``."""

    type: Literal["adaptive_target"] = "adaptive_target"
    target: float = limited(above=0, what="the KL to hold, in nats per token")
    """KL to hold, in nats per token."""
    horizon: int = limited(10_000, at_least=1)
    """Rollout rows over which the coefficient adapts; fewer adapt faster."""
    integral: float = limited(0.0, at_least=0)
    """Weight of the summed error; 0 leaves it out."""

    def build(self, rows: int) -> AdaptiveTargetKL:
        try:
            return AdaptiveTargetKL(self.beta, self.target, gain=rows / self.horizon, integral=self.integral)
        except ConfigError as error:
            raise ConfigError(f"s2l.kl: {error} (rows {rows}, s2l.kl.horizon={self.horizon})") from None

    def in_words(self, rows: int) -> str:
        return f"in the loss, {self.beta:g} at first, then held at {self.target:g} nats per token"


AnyKL = AccuracyKLConfig | ConstantKLConfig | AdaptiveTargetKLConfig
"""Distinguished by ``type``; the first is the default."""
