"""Rules of ``s2l.kl`` and ``s2l.curriculum``: among their own keys, and against verl's settings."""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import DictConfig

from s2l_ext.config.resolve import resolve
from s2l_ext.config.verl_settings import setting, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.config import CURRICULA, RHO_SHAPES, CurriculumConfig, DistillConfig, GuidanceConfig, KLConfig
from s2l_ext.methods.kl.coefficient import (
    AccuracyConditionedKL,
    AdaptiveTargetKL,
    ConstantKL,
    KLController,
    PowerRho,
    Rho,
    tanh_rho,
)

VERL_DEFAULT_KL_COEF = 0.001
KL_COEF = "actor_rollout_ref.actor.kl_loss_coef"
CURRICULUM_GROUP = "s2l.curricula"

KL_KEYS = {
    "constant": {"beta"},
    "accuracy": {"beta", "rho"},
    "adaptive_target": {"beta", "target", "horizon", "integral"},
}
"""Keys of ``s2l.kl`` that each type reads."""

RHO_KEYS = {"linear": {"rho_low", "rho_high"}, "power": {"rho_low", "rho_high", "rho_exponent"}}

CURRICULUM_KEYS = {
    "gaussian": {"center", "sigma", "warm_start"},
    "uniform": {"warm_start"},
    "easy_to_hard": {"tier_column", "tier_order", "warm_start"},
    "file_order": {"warm_start"},
}
ALWAYS = {"type", "ema", "rows", "on_mismatch"}


def refuse_unused(block: Any, used: set[str], prefix: str) -> None:
    """Raise ConfigError for a key that was changed and that the block's ``type`` does not read."""
    for item in dataclasses.fields(block):
        default = item.default_factory() if callable(item.default_factory) else item.default
        value = getattr(block, item.name)
        if item.name not in used and value != default:
            raise ConfigError(
                f"{prefix}.{item.name}={value} would be ignored with {prefix}.type={block.type}, which reads "
                f"{', '.join(sorted(used - {'type'}))}. Leave it out."
            )


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


def needs_accuracy(
    kl: KLConfig | None,
    curriculum: CurriculumConfig | None,
    guidance: GuidanceConfig | None = None,
    distill: DistillConfig | None = None,
) -> list[str]:
    """Settings that read the verifier's ``acc``, as ``key=value``."""
    needing = []
    if kl is not None and kl.type == "accuracy":
        needing.append("s2l.kl.type=accuracy")
    if curriculum is not None and curriculum.type not in ("uniform", "easy_to_hard", "file_order"):
        needing.append(f"s2l.curriculum.type={curriculum.type}")
    if guidance is not None and guidance.length.type in ("adaptive", "additive"):
        needing.append(f"s2l.guidance.length.type={guidance.length.type}")
    if distill is not None and distill.correct_only:
        needing.append("s2l.distill.correct_only=True")
    return needing


# ---- curriculum ---------------------------------------------------------------------------------------------------


def check_curriculum(curriculum: CurriculumConfig, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on the impossible, return warnings."""
    if curriculum.type in CURRICULUM_KEYS:
        refuse_unused(curriculum, CURRICULUM_KEYS[curriculum.type] | ALWAYS, "s2l.curriculum")
    else:
        resolve(curriculum.type, "s2l.curriculum.type", CURRICULA, CURRICULUM_GROUP)
        refuse_unused(curriculum, {"type", "rows", "on_mismatch", "options"}, "s2l.curriculum")
    _refuse_other_prompts(cfg)
    _check_order(curriculum, cfg)
    custom = setting(cfg, "trainer.v1.sampler.custom_sampler.name")
    if custom:
        return [f"trainer.v1.sampler.custom_sampler={custom} must hand on the prompts that s2l.curriculum drew."]
    return []


def _refuse_other_prompts(cfg: DictConfig) -> None:
    """A step must train on the prompts that were drawn for it, all of them and no others."""
    reasons = {
        "algorithm.filter_groups.enable": "drops groups and draws others in their place; the curriculum replaces it",
        "trainer.v1.sampler.sync_refill_failed_groups": "draws other prompts in place of failed groups",
        "skip.rollout_tq.enable": "replays stored rollouts of other prompts",
    }
    for key, reason in reasons.items():
        if setting(cfg, key):
            raise ConfigError(f"{key}=True {reason}. Set {key}=False, or s2l.curriculum=null.")


def _check_order(curriculum: CurriculumConfig, cfg: DictConfig) -> None:
    if curriculum.type in ("gaussian", "uniform") and setting(cfg, "data.shuffle") is False:
        raise ConfigError(
            f"data.shuffle=False asks for the order of the file, s2l.curriculum.type={curriculum.type} draws another. "
            "Set s2l.curriculum.type=file_order, or leave data.shuffle out."
        )
    shuffled_subset = (setting(cfg, "data.train_max_samples") or -1) > 0 and setting(cfg, "data.shuffle")
    if shuffled_subset and setting(cfg, "data.seed") is None:
        raise ConfigError(
            "data.train_max_samples without data.seed takes other rows at every start, so saved pass rates would "
            "belong to other prompts. Set data.seed."
        )
