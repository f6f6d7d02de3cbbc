"""Rows of a step over workers and micro-batches: verl asserts that they divide, minutes after the start."""

from __future__ import annotations

import math
from collections.abc import Iterator

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import GROUP_SIZE, gpus_at, setting, whole_number
from s2l_ext.errors import ConfigError

GROUP = "actor_rollout_ref"
SPLITS = {
    "megatron": ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
    "torchtitan": ("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size"),
    "veomni": ("ulysses_parallel_size",),
}
"""Strategy -> sizes in ``<role>.<strategy>`` whose product shares the rows of one data-parallel rank."""


def check_row_split(cfg: DictConfig) -> None:
    """Raise ConfigError if a worker's rows are no multiple of a micro-batch. With dynamic batches any number fits."""
    if setting(cfg, f"{GROUP}.actor.use_dynamic_bsz"):
        return
    for what, rows, key in _splits(cfg):
        micro = setting(cfg, key)
        if isinstance(micro, int) and micro > 0 and rows % micro:
            raise ConfigError(
                f"{key}={micro}: a worker has {rows:g} rows in {what}, which {micro} does not divide. Set a divisor of "
                f"{rows:g}, or {GROUP}.actor.use_dynamic_bsz=true."
            )


def _splits(cfg: DictConfig) -> Iterator[tuple[str, float, str]]:
    """What is split, its rows on one data-parallel worker, and the key of its micro-batch."""
    group_size = whole_number(cfg, GROUP_SIZE)
    mini_batch = whole_number(cfg, f"{GROUP}.actor.ppo_mini_batch_size") * group_size
    step = whole_number(cfg, "data.train_batch_size") * group_size
    padded = math.ceil(step / mini_batch) * mini_batch  # verl fills up the last mini-batch
    gpus = gpus_at(cfg, "trainer")
    # groups of GPUs that hold different rows
    actor, ref = (gpus / model_parallel_gpus(cfg, f"{GROUP}.{role}") for role in ("actor", "ref"))
    yield "a mini-batch", mini_batch / actor, f"{GROUP}.actor.ppo_micro_batch_size_per_gpu"
    yield "a step", padded / actor, f"{GROUP}.rollout.log_prob_micro_batch_size_per_gpu"
    if setting(cfg, f"{GROUP}.actor.use_kl_loss") or setting(cfg, "algorithm.use_kl_in_reward"):
        yield "a step", padded / ref, f"{GROUP}.ref.log_prob_micro_batch_size_per_gpu"


def model_parallel_gpus(cfg: DictConfig, role: str) -> int:
    """GPUs that work on the same rows."""
    strategy = setting(cfg, f"{role}.strategy")
    if strategy in SPLITS:
        return math.prod(setting(cfg, f"{role}.{strategy}.{name}") or 1 for name in SPLITS[strategy])
    return sequence_parallel_gpus(cfg, role)


def sequence_parallel_gpus(cfg: DictConfig, role: str) -> int:
    """GPUs that share a row by Ulysses. Where both keys are above 1, verl takes the deprecated one."""
    deprecated = setting(cfg, f"{role}.ulysses_sequence_parallel_size") or 1
    return deprecated if deprecated > 1 else setting(cfg, f"{role}.fsdp_config.ulysses_sequence_parallel_size") or 1
