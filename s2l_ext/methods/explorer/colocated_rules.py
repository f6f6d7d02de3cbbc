"""Rules of ``s2l.explorer.placement: colocated``: the explorer's engines on the learner's accelerators, in turns."""

from __future__ import annotations

from omegaconf import DictConfig

from s2l_ext.config.modes import mode_of
from s2l_ext.config.unused import refuse_changed
from s2l_ext.config.verl_settings import setting, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.explorer.config import LiveExplorer

KEY = "s2l.explorer.placement=colocated"
ROLLOUT = "actor_rollout_ref.rollout"
MOST_MEMORY = 0.95
"""Of an accelerator, for both engines together while both sample."""


def check_colocated(explorer: LiveExplorer, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on what an engine beside the learner cannot do; nothing for a dedicated explorer."""
    if not explorer.is_colocated:
        return []
    why = "the explorer has all of the learner's accelerators (trainer.nnodes, trainer.n_gpus_per_node)"
    refuse_changed(explorer, ["nnodes", "n_gpus_per_node"], "s2l.explorer", f"{KEY}: {why}")
    if mode_of(cfg) != "sync":
        raise ConfigError(
            f"{KEY} with trainer.v1.trainer_mode={mode_of(cfg)}: its sessions continue while the learner updates, but "
            "the explorer sleeps then. Set trainer.v1.trainer_mode=sync or s2l.explorer.placement=dedicated."
        )
    if explorer.on_failure != "fail":
        raise ConfigError(
            f"{KEY} with s2l.explorer.on_failure={explorer.on_failure}: a server cannot start again while the learner "
            "trains in the same memory. Leave on_failure out, or set s2l.explorer.placement=dedicated."
        )
    _check_size(explorer, cfg)
    if setting(cfg, "trainer.device") != "cpu":
        _check_memory(explorer, cfg)
    return []


def _check_size(explorer: LiveExplorer, cfg: DictConfig) -> None:
    size, per_node = explorer.tensor_model_parallel_size, whole_number(cfg, "trainer.n_gpus_per_node")
    if per_node % size:
        raise ConfigError(
            f"s2l.explorer.tensor_model_parallel_size={size} does not divide trainer.n_gpus_per_node={per_node}, on "
            f"which the explorer's engines run with {KEY}. Change one of the two."
        )


def _check_memory(explorer: LiveExplorer, cfg: DictConfig) -> None:
    own = explorer.rollout_overrides
    if not (setting(cfg, f"{ROLLOUT}.free_cache_engine") and own.get("free_cache_engine", True)):
        raise ConfigError(
            f"{KEY} needs {ROLLOUT}.free_cache_engine=true: engines that do not sleep keep the memory of the update."
        )
    learner = float(setting(cfg, f"{ROLLOUT}.gpu_memory_utilization"))
    explorers = float(own.get("gpu_memory_utilization", learner))
    if learner + explorers > MOST_MEMORY:
        raise ConfigError(
            f"{KEY}: {ROLLOUT}.gpu_memory_utilization={learner:g} and the explorer's {explorers:g} are more than "
            f"{MOST_MEMORY:g} of an accelerator while both sample. Lower the first, or set "
            "s2l.explorer.rollout_overrides.gpu_memory_utilization."
        )
