"""Which recipes the local loop can run: those that differ from ``grpo/toy`` in nothing that it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from s2l_ext.config.verl_settings import flattened
from s2l_ext.errors import ConfigError
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import S2LConfig

BASE = "grpo/toy"
_ACTOR = (
    *("optim.lr", "optim.weight_decay", "optim.betas", "optim.clip_grad", "ppo_mini_batch_size", "ppo_epochs"),
    *("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "loss_agg_mode", "entropy_coeff"),
    *("use_kl_loss", "kl_loss_coef", "kl_loss_type", "ppo_micro_batch_size_per_gpu"),
)
_ROLLOUT = ("n", "temperature", "top_p", *(f"val_kwargs.{name}" for name in ("n", "do_sample", "temperature", "top_p")))
KNOWN = (
    *("data.train_files", "data.val_files", "data.train_batch_size", "data.max_prompt_length"),
    *("data.max_response_length", "data.train_max_samples", "data.val_max_samples", "data.seed"),
    *("algorithm.norm_adv_by_std_in_grpo", "actor_rollout_ref.model.path"),
    *(f"actor_rollout_ref.actor.{name}" for name in _ACTOR),
    *(f"actor_rollout_ref.rollout.{name}" for name in _ROLLOUT),
    *("reward.custom_reward_function.path", "reward.custom_reward_function.name"),
    *("s2l.", "toy_dir"),
)
"""Settings that it reads; one that ends with a point stands for all that begin so."""
WITHOUT_EFFECT = (
    *("trainer.", "ray_kwargs.", "transfer_queue.", "critic.", "actor_rollout_ref.ref.", "data.dataloader_num_workers"),
    *("actor_rollout_ref.rollout.agent.", "actor_rollout_ref.rollout.max_model_len", "reward.num_workers"),
    *("actor_rollout_ref.rollout.max_num_seqs", "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu"),
    *("actor_rollout_ref.rollout.gpu_memory_utilization", "actor_rollout_ref.rollout.calculate_log_probs"),
)
"""Settings of the stack that it does not use."""
AGGREGATIONS = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean")


def check_local(cfg: DictConfig, s2l: S2LConfig) -> None:
    """Raise ConfigError for a recipe of which the loop would leave something out, with the setting."""
    base, known = _base(), (*KNOWN, *WITHOUT_EFFECT)
    begins = tuple(name for name in known if name.endswith("."))
    for key, value in _settings(cfg).items():
        if value != base.get(key) and key not in known and not key.startswith(begins):
            raise ConfigError(f"{key}={value}: the local loop does not support this setting. Run it with engine: verl.")
    for key, value, supported in _narrower(cfg, s2l):
        raise ConfigError(f"{key}={value}: the local loop supports {supported}. Run it with engine: verl.")


@cache
def _base() -> dict[str, Any]:
    return _settings(compose_config(BASE, []))


def _settings(cfg: DictConfig) -> dict[str, Any]:
    return flattened(cast(dict[str, Any], OmegaConf.to_container(cfg)))


def _narrower(cfg: DictConfig, s2l: S2LConfig) -> Iterator[tuple[str, Any, str]]:
    """Settings whose value it does not know: key, value, what it knows."""
    actor, distill = cfg.actor_rollout_ref.actor, s2l.distill
    if actor.loss_agg_mode not in AGGREGATIONS:
        yield "actor_rollout_ref.actor.loss_agg_mode", actor.loss_agg_mode, ", ".join(AGGREGATIONS)
    if actor.use_kl_loss and actor.kl_loss_type != "low_var_kl":
        yield "actor_rollout_ref.actor.kl_loss_type", actor.kl_loss_type, "low_var_kl"
    if s2l.offline_explorer:
        yield "s2l.explorer.source", s2l.offline_explorer.source, "live"
    live = s2l.live_explorer
    if live and live.top_k != -1:
        yield "s2l.explorer.top_k", live.top_k, "-1"
    if live and live.rollout_overrides:
        yield "s2l.explorer.rollout_overrides", live.rollout_overrides, "the settings of the block"
    if distill and not distill.in_actor:
        yield "s2l.distill.teacher_placement", distill.teacher_placement, "local"
    if s2l.guidance and s2l.guidance.teacher_rollouts:
        yield "s2l.guidance.teacher_rollouts", s2l.guidance.teacher_rollouts, "traces in the data"
    if s2l.curriculum and s2l.curriculum.start_file:
        yield "s2l.curriculum.warm_start", s2l.curriculum.start_file, "a start at 0.5"
    for block in s2l.others:
        yield f"s2l.{block}", "on", "the blocks of this package"
