"""Reading verl's settings with a message that names the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from s2l_ext.errors import ConfigError

GROUP_SIZE = "actor_rollout_ref.rollout.n"


def setting(cfg: DictConfig, key: str) -> Any:
    """The value at a dotted key; None when it is not there."""
    return OmegaConf.select(cfg, key)


def plain_setting(cfg: DictConfig, key: str) -> Any:
    """The same as plain Python: a block is a dict or list."""
    value = setting(cfg, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a.b": value}``; lists, and mappings without keys, are values."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        found |= flattened(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return found


def whole_number(cfg: DictConfig, key: str) -> int:
    """A setting of verl's that must be a whole number; ConfigError names it if it is not."""
    value = setting(cfg, key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{key}={value!r} has the wrong type ({type(value).__name__}): it must be a whole number.")
    return value


def gpus_at(cfg: DictConfig, key: str) -> int:
    """Accelerators of ``<key>.nnodes`` and ``<key>.n_gpus_per_node``."""
    return whole_number(cfg, f"{key}.nnodes") * whole_number(cfg, f"{key}.n_gpus_per_node")


def total_steps(cfg: DictConfig) -> int | None:
    """``trainer.total_training_steps``; None when verl derives it from the data."""
    key = "trainer.total_training_steps"
    return None if setting(cfg, key) is None else whole_number(cfg, key)
