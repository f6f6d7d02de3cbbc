"""Rules of ``s2l.kl``: among its own keys, and against verl's settings."""

from __future__ import annotations

from omegaconf import DictConfig

from s2l_ext.config.resolve import resolve
from s2l_ext.config.unused import refuse_unused
from s2l_ext.config.verl_settings import setting, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.kl.coefficient import (
    AccuracyConditionedKL,
    AdaptiveTargetKL,
    ConstantKL,
    KLController,
    PowerRho,
    Rho,
    tanh_rho,
)
from s2l_ext.methods.kl.config import RHO_SHAPES, KLConfig

VERL_DEFAULT_KL_COEF = 0.001
KL_COEF = "actor_rollout_ref.actor.kl_loss_coef"

KL_KEYS = {
    "constant": {"beta"},
    "accuracy": {"beta", "rho"},
    "adaptive_target": {"beta", "target", "horizon", "integral"},
}
"""Keys of ``s2l.kl`` that each type reads."""

RHO_KEYS = {"linear": {"rho_low", "rho_high"}, "power": {"rho_low", "rho_high", "rho_exponent"}}


# ---- KL -----------------------------------------------------------------------------------------------------------


def check_kl(kl: KLConfig, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on the impossible, return warnings."""
    _refuse_unused_kl(kl)
    _check_kl_knobs(kl, cfg)
    build_kl(kl, cfg)
    warnings = []
    if kl.beta == 0:
        warnings.append("s2l.kl.beta=0: the reference model is computed at every step, but its KL weighs nothing.")
    aggregation = setting(cfg, "actor_rollout_ref.actor.loss_agg_mode")
    if kl.type == "adaptive_target" and aggregation != "token-mean":
        warnings.append(
            f"actor_rollout_ref.actor.loss_agg_mode={aggregation}: the KL that s2l.kl.target={kl.target:g} is compared "
            "with is aggregated in that way, not a mean over tokens."
        )
    return warnings


def _refuse_unused_kl(kl: KLConfig) -> None:
    used = KL_KEYS[kl.type] | (RHO_KEYS.get(kl.rho, set()) if kl.type == "accuracy" else set())
    refuse_unused(kl, used | {"type"}, "s2l.kl")


def _check_kl_knobs(kl: KLConfig, cfg: DictConfig) -> None:
    if setting(cfg, "algorithm.use_kl_in_reward"):
        raise ConfigError(
            "algorithm.use_kl_in_reward=True together with s2l.kl counts the KL twice: verl would subtract it from "
            "rewards with algorithm.kl_ctrl.kl_coef, s2l.kl adds it to the loss with s2l.kl.beta. "
            "Set algorithm.use_kl_in_reward=False, or s2l.kl=null."
        )
    if not setting(cfg, "actor_rollout_ref.actor.use_kl_loss"):
        raise ConfigError(
            f"s2l.kl.type={kl.type} sets the coefficient of the KL term in the loss, but "
            "actor_rollout_ref.actor.use_kl_loss=False leaves that term out: nothing would happen. "
            "Set actor_rollout_ref.actor.use_kl_loss=True, or s2l.kl=null."
        )
    if setting(cfg, "distillation.enabled"):
        raise ConfigError(
            "distillation.enabled=True replaces the loss that s2l.kl acts in. Set distillation.enabled=False, or "
            "s2l.kl=null."
        )
    coefficient = setting(cfg, KL_COEF)
    if coefficient not in (VERL_DEFAULT_KL_COEF, kl.beta):
        raise ConfigError(
            f"{KL_COEF}={coefficient} and s2l.kl.beta={kl.beta:g} both set the KL coefficient. "
            f"Leave {KL_COEF} out: s2l.kl.beta takes its place."
        )


def build_kl(kl: KLConfig, cfg: DictConfig) -> KLController:
    """The controller that the block describes; raises ConfigError with the dotted key."""
    if kl.type == "constant":
        return ConstantKL(kl.beta)
    if kl.type == "accuracy":
        return AccuracyConditionedKL(kl.beta, _rho(kl), name=f"s2l.kl.rho={kl.rho}")
    if kl.target is None:
        raise ConfigError("s2l.kl.type=adaptive_target needs s2l.kl.target: the KL to hold, in nats per token.")
    rows = whole_number(cfg, "data.train_batch_size") * whole_number(cfg, "actor_rollout_ref.rollout.n")
    try:
        return AdaptiveTargetKL(kl.beta, kl.target, gain=rows / kl.horizon, integral=kl.integral)
    except ConfigError as error:
        raise ConfigError(f"s2l.kl: {error} (rows {rows}, s2l.kl.horizon={kl.horizon})") from None


def _rho(kl: KLConfig) -> Rho:
    if kl.rho == "tanh":
        return tanh_rho
    if kl.rho in RHO_KEYS:
        return PowerRho(kl.rho_low, kl.rho_high, kl.rho_exponent if kl.rho == "power" else 1.0)
    function = resolve(kl.rho, "s2l.kl.rho", RHO_SHAPES)
    if not callable(function):
        raise ConfigError(f"s2l.kl.rho={kl.rho} is a {type(function).__name__}: it must be a function of the accuracy.")
    return function
