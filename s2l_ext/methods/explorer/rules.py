"""Rules of ``s2l.explorer``: among its own keys, and against verl's settings and the length of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from s2l_ext.config.modes import mode_of
from s2l_ext.config.nearest import did_you_mean
from s2l_ext.config.parse import refuse_changed
from s2l_ext.config.run_steps import FROM_DATA, RunSteps, ranges, run_steps
from s2l_ext.config.verl_settings import GROUP_SIZE, setting, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.explorer.config import ExplorerConfig, LiveExplorer
from s2l_ext.training.verl_command import UNGROUPED_ESTIMATORS

KEY, ROLLOUT = "s2l.explorer", "actor_rollout_ref.rollout"
COLOCATED = f"{KEY}.placement=colocated"
MOST_MEMORY = 0.95
"""Of an accelerator, for a colocated explorer's engine and the learner's while both sample."""

GROUP_ESTIMATORS = {
    *("grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized", "opo", "gpg", "reinforce_plus_plus_baseline"),
}
"""verl 0.9.1 estimators whose baseline is the group of one prompt."""

OWN_ROLLOUT_KEYS = {"nnodes", "n_gpus_per_node", "tensor_model_parallel_size", "temperature", "top_p", "top_k"}
"""Rollout keys that have an ``s2l.explorer`` key of the same name, which would silently win."""

LEARNER_ONLY_KEYS = {"name", "n", "mode", "agent", "calculate_log_probs", "val_kwargs", "router_config_path"}
"""Rollout keys that describe the step, not an engine."""

UNREAD_KEYS = {"repetition_penalty": "1.0", "do_sample": "how to sample"}
"""Rollout keys that an engine takes and no request of verl's leaves to it, and what the request says."""

ROLLOUT_KEYS_OUTSIDE_YAML = {
    *("repetition_penalty", "standalone_gpu_memory_utilization", "moe_tensor_parallel_size", "server", "custom"),
    *("checkpoint_manager_class", "layer_name_map", "sglang_engine_mode", "limit_images", "enable_sleep_mode"),
}
"""Fields of verl 0.9.1's RolloutConfig that its rollout.yaml does not list."""


def check_explorer(explorer: ExplorerConfig, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on the impossible, return warnings."""
    warnings = [*_group(explorer, cfg), *given_steps_warnings(explorer, cfg), *_log_probs(explorer, cfg)]
    if isinstance(explorer, LiveExplorer):
        warnings += _engine(explorer, cfg)
        _check_overrides(explorer, cfg)
        _check_faults(explorer, cfg)
        if explorer.is_colocated:
            check_colocated(explorer, cfg)
    return warnings


def _group(explorer: ExplorerConfig, cfg: DictConfig) -> Iterator[str]:
    """Its size, the explorer's share of it, and the advantage that compares it."""
    size = whole_number(cfg, GROUP_SIZE)
    if size < 2 and explorer.schedule == "linear":
        raise ConfigError(
            f"{GROUP_SIZE}={size}: with {KEY} on, explorer and learner share one group per prompt, so a group needs at "
            "least 2 sessions (the paper: 16)."
        )
    if explorer.schedule == "constant":
        refuse_changed(explorer, ["mix_steps"], KEY, f"{KEY}.schedule=constant, where the explorer's share never falls")
        if setting(cfg, "s2l.distill") is None:
            yield f"{KEY}.schedule=constant without s2l.distill: the policy gradient never sees the learner's own rows."
    name = setting(cfg, "algorithm.adv_estimator")
    if name in UNGROUPED_ESTIMATORS:
        raise ConfigError(
            f"algorithm.adv_estimator={name} has no group baseline, which {KEY} needs. Set algorithm.adv_estimator="
            f"grpo (or one of: {', '.join(sorted(GROUP_ESTIMATORS - {'grpo'}))})."
        )
    if name == "grpo_passk" and explorer.baseline == "per_source":
        raise ConfigError(
            f"algorithm.adv_estimator={name} with {KEY}.baseline=per_source: it fails on a source that has one row of "
            f"a group. Set {KEY}.baseline=union, or algorithm.adv_estimator=grpo."
        )
    if name not in GROUP_ESTIMATORS:
        yield f"algorithm.adv_estimator={name} is not one of verl's; {KEY} assumes that it compares a group."


def _log_probs(explorer: ExplorerConfig, cfg: DictConfig) -> Iterator[str]:
    prefix = "algorithm.rollout_correction"
    if setting(cfg, "algorithm.use_kl_in_reward"):
        raise ConfigError(
            f"algorithm.use_kl_in_reward=True with {KEY}: log pi - log pi_ref is a KL on tokens that the learner drew. "
            "On the explorer's it is another number, and in a group of equal rewards that difference becomes the "
            "advantage. Set algorithm.use_kl_in_reward=False and actor_rollout_ref.actor.use_kl_loss=True."
        )
    if setting(cfg, f"{prefix}.bypass_mode"):
        raise ConfigError(
            f"{prefix}.bypass_mode=True takes old log-probs from the model that sampled. With {KEY} on they must be "
            f"the learner's on every row. Set {prefix}.bypass_mode=False."
        )
    weighting, rejection = setting(cfg, f"{prefix}.rollout_is"), setting(cfg, f"{prefix}.rollout_rs")
    if weighting is not None:
        raise ConfigError(
            f"{prefix}.rollout_is={weighting} weights learner and explorer rows alike. Set {prefix}.rollout_is=null "
            f"and use {KEY}.correction=truncated_is, which touches explorer rows only."
        )
    if rejection is not None:
        yield f"{prefix}.rollout_rs={rejection} rejects by distance from the learner, explorer rows above all."
    if explorer.correction == "none":
        refuse_changed(explorer, ["is_cap"], KEY, f"{KEY}.correction=none: correction=truncated_is reads it")
    recorded = f"{ROLLOUT}.calculate_log_probs"
    if explorer.correction == "truncated_is" and not setting(cfg, recorded):
        raise ConfigError(
            f"{KEY}.correction=truncated_is divides by the explorer's own log-probs, but {recorded}="
            f"{setting(cfg, recorded)}. Set {recorded}=True."
        )


# ---- a live explorer ------------------------------------------------------------------------------------------------


def _engine(explorer: LiveExplorer, cfg: DictConfig) -> Iterator[str]:
    name = setting(cfg, f"{ROLLOUT}.name")
    if name != "vllm":
        raise ConfigError(f"{ROLLOUT}.name={name}: the explorer's servers are vLLM's. Set {ROLLOUT}.name=vllm.")
    size, per_node = explorer.tensor_model_parallel_size, explorer.n_gpus_per_node
    fits = per_node % size == 0 or (size % per_node == 0 and explorer.nnodes % (size // per_node) == 0)
    if not fits and not explorer.is_colocated:
        raise ConfigError(
            f"{KEY}.tensor_model_parallel_size={size} does not divide the explorer's GPUs of a node (n_gpus_per_node "
            f"{per_node}, nnodes {explorer.nnodes}) nor fill whole nodes. Change one of the three."
        )
    if explorer.temperature == 0:
        yield f"{KEY}.temperature=0 is greedy: all explorer sessions of a prompt will be the same text."


def _check_overrides(explorer: LiveExplorer, cfg: DictConfig) -> None:
    known = set(setting(cfg, ROLLOUT)) | ROLLOUT_KEYS_OUTSIDE_YAML
    for name in explorer.rollout_overrides:
        key = f"{KEY}.rollout_overrides.{name}"
        if name in OWN_ROLLOUT_KEYS:
            raise ConfigError(f"{key} would compete with {KEY}.{name}. Set {KEY}.{name} instead.")
        if name in LEARNER_ONLY_KEYS:
            raise ConfigError(f"{key}: {ROLLOUT}.{name} holds for the whole step, not for one engine.")
        if name in UNREAD_KEYS:
            raise ConfigError(f"{key} would be ignored: verl's agent loop says {UNREAD_KEYS[name]} with every request.")
        if name not in known:
            raise ConfigError(f"{key}: {ROLLOUT} has no such key.{did_you_mean(name, known)}")


def _check_faults(explorer: LiveExplorer, cfg: DictConfig) -> None:
    """Settings of a restart that never happens, and a learner that cannot stand in."""
    restart = ["max_restarts", "restart_backoff_s", "start_timeout_s"]
    if explorer.on_failure == "fail":
        unread = restart[:2] if explorer.is_colocated else restart  # a turn may take start_timeout_s as well
        refuse_changed(explorer, unread, KEY, f"{KEY}.on_failure=fail: the run ends with the first failure")
    elif explorer.max_restarts == 0:
        refuse_changed(explorer, restart[1:], KEY, f"{KEY}.max_restarts=0: no server is started again")
        if explorer.on_failure == "wait":
            raise ConfigError(
                f"{KEY}.max_restarts=0 with {KEY}.on_failure=wait would wait for a server that is never started again. "
                f"Set {KEY}.max_restarts to 1 or more, or {KEY}.on_failure=fail."
            )
    if explorer.on_failure == "learner" and setting(cfg, "s2l.distill") is not None:
        raise ConfigError(
            f"{KEY}.on_failure=learner with s2l.distill would take a loss that is meant for the teacher's rows on the "
            f"student's own. Set {KEY}.on_failure=wait or fail."
        )


def check_colocated(explorer: LiveExplorer, cfg: DictConfig) -> None:
    """Raise ConfigError on what engines that take turns with the learner's on its accelerators cannot do."""
    why = "the explorer has all of the learner's accelerators (trainer.nnodes, trainer.n_gpus_per_node)"
    refuse_changed(explorer, ["nnodes", "n_gpus_per_node"], KEY, f"{COLOCATED}: {why}")
    if mode_of(cfg) != "sync":
        raise ConfigError(
            f"{COLOCATED} with trainer.v1.trainer_mode={mode_of(cfg)}: its sessions continue while the learner "
            f"updates, but the explorer sleeps then. Set trainer.v1.trainer_mode=sync or {KEY}.placement=dedicated."
        )
    if explorer.on_failure != "fail":
        raise ConfigError(
            f"{COLOCATED} with {KEY}.on_failure={explorer.on_failure}: a server cannot start again while the learner "
            f"trains in the same memory. Leave on_failure out, or set {KEY}.placement=dedicated."
        )
    size, per_node = explorer.tensor_model_parallel_size, whole_number(cfg, "trainer.n_gpus_per_node")
    if per_node % size:
        raise ConfigError(
            f"{KEY}.tensor_model_parallel_size={size} does not divide trainer.n_gpus_per_node={per_node}, on which the "
            f"explorer's engines run with {COLOCATED}. Change one of the two."
        )
    if setting(cfg, "trainer.device") != "cpu":
        _check_memory(explorer.rollout_overrides, cfg)


def _check_memory(own: dict[str, Any], cfg: DictConfig) -> None:
    if not (setting(cfg, f"{ROLLOUT}.free_cache_engine") and own.get("free_cache_engine", True)):
        raise ConfigError(
            f"{COLOCATED} needs {ROLLOUT}.free_cache_engine=true: engines that do not sleep keep the memory of the "
            "update."
        )
    learners = setting(cfg, f"{ROLLOUT}.gpu_memory_utilization")
    learner, explorer = (float(share) for share in (learners, own.get("gpu_memory_utilization", learners)))
    if learner + explorer > MOST_MEMORY:
        raise ConfigError(
            f"{COLOCATED}: {ROLLOUT}.gpu_memory_utilization={learner:g} and the explorer's {explorer:g} are more than "
            f"{MOST_MEMORY:g} of an accelerator while both sample. Lower the first, or set "
            f"{KEY}.rollout_overrides.gpu_memory_utilization."
        )


# ---- does its share end within the run? -----------------------------------------------------------------------------


def given_steps_warnings(explorer: ExplorerConfig, cfg: DictConfig) -> list[str]:
    """:func:`_never_ends` by ``trainer.total_training_steps`` alone, before any data is read."""
    steps = run_steps(cfg, None)
    return _never_ends(explorer, whole_number(cfg, GROUP_SIZE), steps) if steps else []


def schedule_warnings_of_run(explorer: ExplorerConfig, cfg: DictConfig, steps: RunSteps | None) -> list[str]:
    """The same by the steps that the run really has, unless the settings alone have said it; and lone rows."""
    group = whole_number(cfg, GROUP_SIZE)
    warnings = _lone_rows(explorer, group, steps)
    if steps and steps.source == FROM_DATA and not given_steps_warnings(explorer, cfg):
        warnings += _never_ends(explorer, group, steps)
    return warnings


def _never_ends(explorer: ExplorerConfig, group: int, steps: RunSteps) -> list[str]:
    if explorer.schedule == "constant" or not steps.number or explorer.build(group).slots(steps.number) == 0:
        return []
    how = "more than" if explorer.mix_steps > steps.number else "all of"
    return [
        f"{KEY}.mix_steps={explorer.mix_steps} is {how} the run's {steps.number} steps ({steps.source}): the "
        "explorer's share never reaches 0."
    ]


def _lone_rows(explorer: ExplorerConfig, group: int, steps: RunSteps | None) -> list[str]:
    """Steps of the run at which a group has one row of a source, whose baseline would be its own."""
    if explorer.baseline != "per_source" or explorer.schedule == "constant":
        return []
    last = explorer.mix_steps if steps is None else min(explorer.mix_steps, steps.number)
    slots_of_steps = enumerate(explorer.build(group).table(last), start=1)
    alone = [step for step, slots in slots_of_steps if 1 in (slots, group - slots)]
    if not alone:
        return []
    return [
        f"{KEY}.baseline=per_source leaves one row of a source alone in its group at step {ranges(alone)}: it has no "
        "baseline, so verl makes its reward its advantage."
    ]
