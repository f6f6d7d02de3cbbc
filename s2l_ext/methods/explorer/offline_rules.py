"""Rules of ``s2l.explorer.source``: live servers or rollouts sampled before, and what only one of them reads."""

from __future__ import annotations

import dataclasses

from omegaconf import DictConfig

from s2l_ext.errors import ConfigError
from s2l_ext.methods.explorer.config import ExplorerConfig

OFFLINE_KEYS = ("store", "on_exhausted")
LIVE_KEYS = {
    "placement": "no servers run",
    "nnodes": "no servers run",
    "n_gpus_per_node": "no servers run",
    "tensor_model_parallel_size": "no servers run",
    "rollout_overrides": "no servers run",
    "on_failure": "no servers run",
    "max_restarts": "no servers run",
    "restart_backoff_s": "no servers run",
    "start_timeout_s": "no servers run",
    "health_interval_s": "no servers run",
    "health_timeout_s": "no servers run",
    "request_timeout_s": "no servers run",
    "model_path": "the store says which model sampled",
    "temperature": "the store says how it was sampled",
    "top_p": "the store says how it was sampled",
    "top_k": "the store says how it was sampled",
}
"""Keys that describe a live explorer, and why stored rollouts make them meaningless."""


def check_source(explorer: ExplorerConfig, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on a key that the chosen source needs or would ignore."""
    default = {item.name: item.default for item in dataclasses.fields(ExplorerConfig)} | {"rollout_overrides": {}}
    offline = explorer.source == "offline"
    for name in LIVE_KEYS if offline else OFFLINE_KEYS:
        value = getattr(explorer, name)
        if value == default[name]:
            continue
        why = LIVE_KEYS[name] if offline else "a live explorer samples afresh"
        raise ConfigError(
            f"s2l.explorer.{name}={value} would be ignored with s2l.explorer.source={explorer.source}: {why}. "
            + ("Leave it out." if default[name] is not None else f"Set s2l.explorer.{name}=null.")
        )
    if offline and explorer.store is None:
        raise ConfigError(
            "s2l.explorer.source=offline takes rollouts from s2l.explorer.store, which is not set. Set it to a folder "
            "that `s2l explore --out DIR` wrote."
        )
    return []
