"""The block ``s2l.kl``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from s2l_ext.config.limits import limited

RHO_SHAPES = ("tanh", "linear", "power")


@dataclass(frozen=True)
class KLConfig:
    """EXPO's coefficient of the KL term in the loss; it takes the place of ``actor.kl_loss_coef``.

    ``beta`` is the coefficient before ``rho``, or the start value of ``adaptive_target``. ``rho`` is one of
    :data:`RHO_SHAPES` or ``pkg.module:function``; ``rho_low`` and ``rho_high`` are its values at accuracy 0 and 1
    (linear, power). ``target`` is in nats per token, ``horizon`` in rollout rows, as in verl's ``algorithm.kl_ctrl``.
    """

    type: Literal["constant", "accuracy", "adaptive_target"] = "accuracy"
    beta: float = limited(0.02, at_least=0)
    rho: str = "tanh"
    rho_low: float = limited(0.5, above=0)
    rho_high: float = limited(1.0, above=0)
    rho_exponent: float = limited(2.0, above=0)
    target: float | None = limited(None, above=0)
    horizon: int = limited(10_000, at_least=1)
    integral: float = limited(0.0, at_least=0)
