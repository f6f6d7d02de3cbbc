"""verl's trainer modes: which of our trainers runs, and how old a row's plan may be."""

from __future__ import annotations

import math

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import setting, whole_number
from s2l_ext.errors import ConfigError

TRAINERS = {"sync": "s2l", "colocate_async": "s2l_colocate_async", "separate_async": "s2l_separate_async"}
"""verl's modes, and the names under which our trainers of these modes are registered."""

CPU_ENGINE = "s2l_cpu"
"""Checkpoint engine for new weights where there is no accelerator (``platforms/object_store_engine.py``)."""

MODE_KEY = "trainer.v1.trainer_mode"
THRESHOLD_KEY = "trainer.v1.sampler.max_off_policy_threshold"
ENGINE_KEY = "actor_rollout_ref.rollout.checkpoint_engine.backend"


def learner_samples(cfg: DictConfig) -> bool:
    """Whether servers of the learner's model run on its own accelerators: in ``separate_async`` too, unless
    ``hybrid_engine`` is false."""
    return mode_of(cfg) != "separate_async" or setting(cfg, "actor_rollout_ref.hybrid_engine") is not False


def mode_of(cfg: DictConfig) -> str:
    """verl's name of the mode, whether the configuration says it in verl's word or in ours. Raises ConfigError: no such
    mode."""
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
