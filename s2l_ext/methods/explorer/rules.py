"""Rules of ``s2l.explorer`` against verl's settings."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.config.unused import refuse_changed
from s2l_ext.config.verl_settings import setting, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.explorer.colocated_rules import check_colocated
from s2l_ext.methods.explorer.config import ExplorerConfig, LiveExplorer
from s2l_ext.methods.explorer.fault_rules import check_faults
from s2l_ext.methods.explorer.schedule_rules import given_steps_warnings

GROUP_ESTIMATORS = frozenset(
    {
        "grpo",
        "grpo_vectorized",
        "grpo_passk",
        "gdpo",
        "rloo",
        "rloo_vectorized",
        "opo",
        "gpg",
        "reinforce_plus_plus_baseline",
        "optimal_token_baseline",
        "tir_optimal_token_baseline",
    }
)
"""verl 0.9.1 estimators whose baseline is the group of one prompt."""


UNGROUPED_ESTIMATORS = frozenset({"gae", "reinforce_plus_plus", "remax"})


OWN_ROLLOUT_KEYS = frozenset(
    {
        "nnodes",
        "n_gpus_per_node",
        "tensor_model_parallel_size",
        "temperature",
        "top_p",
        "top_k",
    }
)
"""Rollout keys that have an ``s2l.explorer`` key of the same name, which would silently win."""


LEARNER_ONLY_KEYS = frozenset({"name", "n", "mode", "agent", "calculate_log_probs", "val_kwargs", "router_config_path"})
"""Rollout keys that describe the step, not an engine."""


ROLLOUT_KEYS_OUTSIDE_YAML = frozenset(
    {
        "standalone_gpu_memory_utilization",
        "moe_tensor_parallel_size",
        "server",
        "custom",
        "checkpoint_manager_class",
        "layer_name_map",
        "sglang_engine_mode",
        "limit_images",
        "enable_sleep_mode",
    }
)
"""Fields of verl 0.9.1's RolloutConfig that its rollout.yaml does not list."""


def _group_size(explorer: ExplorerConfig, cfg: DictConfig) -> list[str]:
    size = whole_number(cfg, "actor_rollout_ref.rollout.n")
    if size < 2 and explorer.schedule == "linear":
        raise ConfigError(
            f"actor_rollout_ref.rollout.n={size}: with s2l.explorer on, explorer and learner share one group per "
            "prompt, so a group needs at least 2 sessions (the paper: 16)."
        )
    return []


def _estimator(explorer: ExplorerConfig, cfg: DictConfig) -> list[str]:
    name = setting(cfg, "algorithm.adv_estimator")
    if name in UNGROUPED_ESTIMATORS:
        raise ConfigError(
            f"algorithm.adv_estimator={name} has no group baseline, which s2l.explorer needs. "
            f"Set algorithm.adv_estimator=grpo (or one of: {', '.join(sorted(GROUP_ESTIMATORS - {'grpo'}))})."
        )
    if name in GROUP_ESTIMATORS:
        return []
    return [f"algorithm.adv_estimator={name} is not one of verl's; s2l.explorer assumes that it compares a group."]


def _old_log_probs(explorer: ExplorerConfig, cfg: DictConfig) -> list[str]:
    prefix = "algorithm.rollout_correction"
    if setting(cfg, f"{prefix}.bypass_mode"):
        raise ConfigError(
            f"{prefix}.bypass_mode=True takes old log-probs from the model that sampled. With s2l.explorer on they "
            f"must be the learner's on every row. Set {prefix}.bypass_mode=False."
        )
    weighting = setting(cfg, f"{prefix}.rollout_is")
    if weighting is not None:
        raise ConfigError(
            f"{prefix}.rollout_is={weighting} weights learner and explorer rows alike. Set {prefix}.rollout_is=null "
            "and use s2l.explorer.correction=truncated_is, which touches explorer rows only."
        )
    rejection = setting(cfg, f"{prefix}.rollout_rs")
    if rejection is None:
        return []
    return [f"{prefix}.rollout_rs={rejection} rejects by distance from the learner, explorer rows above all."]


def _correction(explorer: ExplorerConfig, cfg: DictConfig) -> list[str]:
    if explorer.correction == "none":
        why = "s2l.explorer.correction=none: correction=truncated_is reads it"
        refuse_changed(explorer, ["is_cap"], "s2l.explorer", why)
    key = "actor_rollout_ref.rollout.calculate_log_probs"
    if explorer.correction == "truncated_is" and not setting(cfg, key):
        raise ConfigError(
            f"s2l.explorer.correction=truncated_is divides by the explorer's own log-probs, but {key}="
            f"{setting(cfg, key)}. Set {key}=True."
        )
    return []


def _engine(explorer: LiveExplorer, cfg: DictConfig) -> list[str]:
    name = setting(cfg, "actor_rollout_ref.rollout.name")
    if name != "vllm":
        raise ConfigError(
            f"actor_rollout_ref.rollout.name={name}: the explorer's servers are vLLM's. "
            "Set actor_rollout_ref.rollout.name=vllm."
        )
    size, per_node = explorer.tensor_model_parallel_size, explorer.n_gpus_per_node
    if explorer.is_colocated:
        return []
    if per_node % size and not (size % per_node == 0 and explorer.nnodes % (size // per_node) == 0):
        raise ConfigError(
            f"s2l.explorer.tensor_model_parallel_size={size} does not divide the explorer's GPUs of a node "
            f"(n_gpus_per_node {per_node}, nnodes {explorer.nnodes}) nor fill whole nodes. Change one of the three."
        )
    return []


def _sampling(explorer: LiveExplorer, cfg: DictConfig) -> list[str]:
    if explorer.temperature > 0:
        return []
    return ["s2l.explorer.temperature=0 is greedy: all explorer sessions of a prompt will be the same text."]


def _overrides(explorer: LiveExplorer, cfg: DictConfig) -> list[str]:
    known = set(setting(cfg, "actor_rollout_ref.rollout")) | ROLLOUT_KEYS_OUTSIDE_YAML
    for name in explorer.rollout_overrides:
        key = f"s2l.explorer.rollout_overrides.{name}"
        if name in OWN_ROLLOUT_KEYS:
            raise ConfigError(f"{key} would compete with s2l.explorer.{name}. Set s2l.explorer.{name} instead.")
        if name in LEARNER_ONLY_KEYS:
            raise ConfigError(f"{key}: actor_rollout_ref.rollout.{name} holds for the whole step, not for one engine.")
        if name not in known:
            raise ConfigError(f"{key}: actor_rollout_ref.rollout has no such key.{did_you_mean(name, known)}")
    return []


def _constant(explorer: ExplorerConfig, cfg: DictConfig) -> list[str]:
    if explorer.schedule == "constant":
        why = "s2l.explorer.schedule=constant, where the explorer's share never falls"
        refuse_changed(explorer, ["mix_steps"], "s2l.explorer", why)
    if explorer.schedule == "constant" and setting(cfg, "s2l.distill") is None:
        return [
            "s2l.explorer.schedule=constant without s2l.distill: the policy gradient never sees the learner's own rows."
        ]
    return []


EXPLORER_RULES: tuple[Callable[[ExplorerConfig, DictConfig], list[str]], ...] = (
    _group_size,
    _constant,
    _estimator,
    given_steps_warnings,
    _old_log_probs,
    _correction,
)
LIVE_RULES: tuple[Callable[[LiveExplorer, DictConfig], list[str]], ...] = (
    _engine,
    _sampling,
    _overrides,
    check_faults,
    check_colocated,
)


def check_explorer(explorer: ExplorerConfig, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on the impossible, return warnings."""
    warnings = [warning for rule in EXPLORER_RULES for warning in rule(explorer, cfg)]
    if isinstance(explorer, LiveExplorer):
        warnings += [warning for live_rule in LIVE_RULES for warning in live_rule(explorer, cfg)]
    return warnings
