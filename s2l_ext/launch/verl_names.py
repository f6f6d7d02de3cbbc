"""Names and files that verl looks up when it first uses them, after the models have loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.config.verl_settings import setting
from s2l_ext.errors import ConfigError
from s2l_ext.training.inputs import parquet_files
from s2l_ext.training.verl_rules import LOOP_COLUMN, LOOP_KEY

ROLLOUT = "actor_rollout_ref.rollout"
FILES = (
    f"{ROLLOUT}.agent.agent_loop_config_path",
    f"{ROLLOUT}.multi_turn.tool_config_path",
    f"{ROLLOUT}.multi_turn.interaction_config_path",
    "data.custom_cls.path",
    "trainer.v1.sampler.custom_sampler.path",
)


def check_names(cfg: DictConfig) -> None:
    """Raise ConfigError for a name that verl has not registered, or a file that is not there.

    A library of the user's (``model.external_lib``) may register more names in the workers.
    """
    for key in FILES:
        path = setting(cfg, key)
        if path and "://" not in str(path) and not Path(str(path)).is_file():
            raise ConfigError(f"{key}={path}: no such file, from the folder in which the run starts.")
    if not setting(cfg, "actor_rollout_ref.model.external_lib"):
        for key, name, known in _looked_up(cfg):
            if name not in known:
                raise ConfigError(
                    f"{key}={name}: verl has no such name.{did_you_mean(str(name), known)} It has: "
                    f"{', '.join(sorted(known))}."
                )
    for key in _kl_types(cfg):
        _ask_for_kl(key, str(setting(cfg, key)))


def _looked_up(cfg: DictConfig) -> Iterator[tuple[str, Any, list[str]]]:
    """Where a name stands, the name, and those that verl has."""
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY

    tables: dict[str, Iterable[str]] = {
        "algorithm.adv_estimator": ADV_ESTIMATOR_REGISTRY,
        "actor_rollout_ref.actor.policy_loss.loss_mode": POLICY_LOSS_REGISTRY,
    }
    if not setting(cfg, f"{ROLLOUT}.agent.agent_loop_config_path"):
        tables[LOOP_KEY] = _agent_loop_registry
        for key in ("train_files", "val_files"):
            for name in _loops_of_rows(parquet_files(cfg, key)):
                yield f"column {LOOP_COLUMN} of data.{key}", name, list(_agent_loop_registry)
    for key, table in tables.items():
        if setting(cfg, key) is not None:
            yield key, setting(cfg, key), list(table)


def _loops_of_rows(files: Iterable[Path]) -> Iterator[Any]:
    for path in files:
        if path.is_file() and LOOP_COLUMN in pq.read_schema(path).names:
            yield from pq.read_table(path, columns=[LOOP_COLUMN]).column(0).unique().to_pylist()


def _kl_types(cfg: DictConfig) -> Iterator[str]:
    if setting(cfg, "actor_rollout_ref.actor.use_kl_loss"):
        yield "actor_rollout_ref.actor.kl_loss_type"
    if setting(cfg, "algorithm.use_kl_in_reward"):
        yield "algorithm.kl_penalty"


def _ask_for_kl(key: str, name: str) -> None:
    """verl keeps no list of them."""
    import torch
    from verl.trainer.ppo.core_algos import kl_penalty

    try:
        kl_penalty(torch.FloatTensor([0.0]), torch.FloatTensor([0.0]), name)
    except NotImplementedError:
        known = ("k1", "abs", "k2", "k3", "low_var_kl")
        raise ConfigError(
            f"{key}={name}: verl has no such estimate of the KL divergence.{did_you_mean(name, known)} It has: "
            f"{', '.join(known)}, each also with a + at its end."
        ) from None
