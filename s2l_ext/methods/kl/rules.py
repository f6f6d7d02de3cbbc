"""Rules of ``s2l.kl``: among its own keys, and against verl's settings."""

from __future__ import annotations

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import GROUP_SIZE, setting, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.kl.config import AdaptiveTargetKLConfig, KLConfig

VERL_DEFAULT_KL_COEF = 0.001
KL_COEF = "actor_rollout_ref.actor.kl_loss_coef"
KL_TYPE = "actor_rollout_ref.actor.kl_loss_type"
WITHOUT_GRADIENT = ("kl", "k1")
"""log pi - log pi_ref: a KL on average, and no gradient on average."""


def check_kl(kl: KLConfig, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on the impossible, return warnings."""
    _check_kl_knobs(kl, cfg)
    kl.build(rows_of_a_step(cfg))
    warnings = []
    if kl.beta == 0:
        warnings.append("s2l.kl.beta=0: the reference model is computed at every step, but its KL weighs nothing.")
    if setting(cfg, KL_TYPE) in ("abs", "abs+"):
        warnings.append(
            f"{KL_TYPE}={setting(cfg, KL_TYPE)} is no estimate of a KL: near the reference it is far larger, so "
            f"s2l.kl.beta weighs more than in the paper. Set {KL_TYPE}=low_var_kl."
        )
    aggregation = setting(cfg, "actor_rollout_ref.actor.loss_agg_mode")
    if isinstance(kl, AdaptiveTargetKLConfig) and aggregation != "token-mean":
        warnings.append(
            f"actor_rollout_ref.actor.loss_agg_mode={aggregation}: the KL that s2l.kl.target={kl.target:g} is compared "
            "with is aggregated in that way, not a mean over tokens."
        )
    return warnings


def _check_kl_knobs(kl: KLConfig, cfg: DictConfig) -> None:
    if setting(cfg, "algorithm.use_kl_in_reward"):
        raise ConfigError(
            "algorithm.use_kl_in_reward=True together with s2l.kl counts the KL twice: verl would subtract it from "
            "rewards with algorithm.kl_ctrl.kl_coef, s2l.kl adds it to the loss with s2l.kl.beta. "
            "Set algorithm.use_kl_in_reward=False, or s2l.kl=null."
        )
    kind = setting(cfg, KL_TYPE)
    if kind in WITHOUT_GRADIENT:
        raise ConfigError(
            f"{KL_TYPE}={kind}: its gradient is 0 on average over the learner's own tokens, so s2l.kl would change "
            f"nothing but noise. Set {KL_TYPE}=low_var_kl (the paper's K3) or {kind}+."
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


def rows_of_a_step(cfg: DictConfig) -> int:
    """Rollout rows that every step has."""
    return whole_number(cfg, "data.train_batch_size") * whole_number(cfg, GROUP_SIZE)
