"""verl's trainer modes: which of our trainers runs, what a mode cannot do, and how old a row's plan may be."""

from __future__ import annotations

import math

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import setting, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.config import S2LConfig

TRAINERS = {"sync": "s2l", "colocate_async": "s2l_colocate_async", "separate_async": "s2l_separate_async"}
"""verl's modes, and the names under which our trainers of these modes are registered."""

CPU_ENGINE = "s2l_cpu"
"""Checkpoint engine for new weights where there is no accelerator (``platforms/object_store_engine.py``)."""

MODE_KEY = "trainer.v1.trainer_mode"
THRESHOLD_KEY = "trainer.v1.sampler.max_off_policy_threshold"
ENGINE_KEY = "actor_rollout_ref.rollout.checkpoint_engine.backend"


def mode_of(cfg: DictConfig) -> str:
    """verl's name of the mode, whether the configuration says it in verl's word or in ours.

    Raises:
        ConfigError: no such mode.
    """
    given = setting(cfg, MODE_KEY) or "sync"
    for mode, name in TRAINERS.items():
        if given in (mode, name):
            return mode
    raise ConfigError(
        f"{MODE_KEY}={given}: this package extends verl's trainers {', '.join(TRAINERS)}. Choose one of them, or run "
        "verl alone with `python -m verl.trainer.main_ppo`."
    )


def draws_ahead(cfg: DictConfig) -> bool:
    """Whether a step may train on prompts that an earlier one drew."""
    return mode_of(cfg) != "sync"


def lag_limit(cfg: DictConfig) -> int | None:
    """Steps that a row's plan may be old when the row is trained on; None without a limit.

    verl drops a prompt of more than ``max_off_policy_threshold`` steps, its own counted. With the strategy ``wait`` it
    stops until every prompt of that age is finished and takes the oldest first: those drawn ahead can come on top.
    """
    if not draws_ahead(cfg):
        return 0
    if setting(cfg, THRESHOLD_KEY) is None:
        return None
    limit = whole_number(cfg, THRESHOLD_KEY) - 1
    if setting(cfg, "trainer.v1.sampler.max_off_policy_strategy") == "wait":
        return limit + math.ceil(batches_ahead(cfg))
    return limit


def batches_ahead(cfg: DictConfig) -> float:
    """``num_warmup_batches``: batches in the queue beside the one that a step draws; none in ``sync``."""
    return float(setting(cfg, f"trainer.v1.{mode_of(cfg)}.num_warmup_batches") or 0)


def most_draws(cfg: DictConfig) -> int | None:
    """Prompts between two steps beyond which verl must be dropping all of them: ten times what can be under way.

    Where groups are filtered by their rewards, many may be dropped rightly. A synchronous step trains on what is left.
    """
    if not draws_ahead(cfg) or setting(cfg, "algorithm.filter_groups.enable"):
        return None
    return math.ceil(10 * whole_number(cfg, "data.train_batch_size") * (1 + batches_ahead(cfg)))


def check_mode(s2l: S2LConfig, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on what the chosen mode cannot do; returns warnings."""
    mode = mode_of(cfg)
    if s2l.anything_on:
        _refuse_split_steps(mode, cfg)
    if mode == "sync":
        return []
    if s2l.anything_on:
        _check_lag(s2l, cfg)
        _check_seeds(mode, cfg)
    if mode == "separate_async":
        _check_separate(cfg)
    return []


def _refuse_split_steps(mode: str, cfg: DictConfig) -> None:
    """verl reads the key in every mode; plans and controllers are of one update a step."""
    key = f"trainer.v1.{mode}.parameter_sync_step"
    updates = setting(cfg, key) or 1
    if updates > 1:
        raise ConfigError(
            f"{key}={updates}: verl would train that many times in a step, and controllers of s2l act once. Set "
            f"{key}=1."
        )


def _check_lag(s2l: S2LConfig, cfg: DictConfig) -> None:
    planned = [name for name in ("explorer", "guidance", "curriculum") if getattr(s2l, name) is not None]
    if planned and lag_limit(cfg) is None:
        raise ConfigError(
            f"{THRESHOLD_KEY}=null: nothing would bound how old the plan of a row is that s2l.{planned[0]} made when "
            f"its prompt was drawn. Set {THRESHOLD_KEY} to a whole number of steps (verl: 8)."
        )


def _check_seeds(mode: str, cfg: DictConfig) -> None:
    key = "actor_rollout_ref.rollout.agent.default_agent_loop"
    if setting(cfg, key) == "s2l_seeded":
        raise ConfigError(
            f"{key}=s2l_seeded fixes what is sampled, and {MODE_KEY}={mode} cannot: a token's weights depend on time, "
            f"and a session that goes on after a step would repeat its random numbers. Set {key}=single_turn_agent, "
            f"or {MODE_KEY}=sync."
        )


def _check_separate(cfg: DictConfig) -> None:
    """What verl asserts inside its task runner, with keys and fixes; and what is not built."""
    where = f"{MODE_KEY}=separate_async"
    for name in ("nnodes", "n_gpus_per_node"):
        key = f"actor_rollout_ref.rollout.{name}"
        if whole_number(cfg, key) < 1:
            raise ConfigError(f"{key}={setting(cfg, key)}: {where} samples on GPUs of its own. Set it to at least 1.")
    _check_engine(where, cfg)
    updates = whole_number(cfg, "trainer.v1.separate_async.parameter_sync_step")
    batch, mini = (
        whole_number(cfg, key) for key in ("data.train_batch_size", "actor_rollout_ref.actor.ppo_mini_batch_size")
    )
    if batch != updates * mini:
        raise ConfigError(
            f"data.train_batch_size={batch} is not trainer.v1.separate_async.parameter_sync_step={updates} x "
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini}, which {where} needs. Set ppo_mini_batch_size="
            f"{batch // updates}."
        )


def _check_engine(where: str, cfg: DictConfig) -> None:
    engine, on_cpu = setting(cfg, ENGINE_KEY), setting(cfg, "trainer.device") == "cpu"
    if on_cpu and engine != CPU_ENGINE:
        raise ConfigError(
            f"{ENGINE_KEY}={engine}: {where} sends weights between processes, and on a machine without an accelerator "
            f"only {CPU_ENGINE} can. Set {ENGINE_KEY}={CPU_ENGINE}."
        )
    if not on_cpu and engine in ("naive", CPU_ENGINE):
        raise ConfigError(
            f"{ENGINE_KEY}={engine}: {where} sends weights from GPU to GPU. Set {ENGINE_KEY} to nccl, nixl or another "
            "engine of verl's."
        )
