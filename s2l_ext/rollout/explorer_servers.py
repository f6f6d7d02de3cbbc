"""The explorer's own vLLM replicas: a second, frozen model on its own GPUs."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.utils.device import get_resource_name
from verl.workers.rollout.llm_server import LLMServerClient, LLMServerManager

from s2l_ext.config import ExplorerConfig

logger = logging.getLogger(__name__)

FIRST_REPLICA_RANK = 1000
"""Replica ranks name Ray actors; the learner's count from 0."""


def explorer_config(config: DictConfig, explorer: ExplorerConfig) -> DictConfig:
    """verl's configuration with the explorer's model and placement in place of the learner's rollout."""
    copied = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    with open_dict(copied):
        model, rollout = copied.actor_rollout_ref.model, copied.actor_rollout_ref.rollout
        point_to_model(model, explorer.model)
        rollout.update(
            nnodes=explorer.nnodes,
            n_gpus_per_node=explorer.n_gpus_per_node,
            tensor_model_parallel_size=explorer.tensor_model_parallel_size,
            data_parallel_size=1,
            pipeline_model_parallel_size=1,
            load_format="auto",
        )
        copied.actor_rollout_ref.rollout = OmegaConf.merge(rollout, explorer.rollout_overrides)
    return copied


def point_to_model(model: DictConfig, path: str) -> None:
    """Make ``actor_rollout_ref.model`` describe another model, in place."""
    with open_dict(model):
        model.update(path=path, tokenizer_path=None, hf_config_path=None, lora_rank=0, lora_adapter_path=None)


class ExplorerServers:
    """Starts, versions and stops the explorer's replicas. Holds no training state."""

    def __init__(self, config: DictConfig, explorer: ExplorerConfig) -> None:
        self._manager: LLMServerManager | None = LLMServerManager.create(
            config=explorer_config(config, explorer), start_rank=FIRST_REPLICA_RANK
        )

    @property
    def running(self) -> bool:
        return self._manager is not None

    def client(self) -> LLMServerClient | None:
        return self._manager.get_client() if self._manager else None

    def set_step(self, step: int) -> None:
        """Give rows the current weight version; a frozen model is never stale, and verl's metrics need a number."""
        if self._manager:
            ray.get([server.set_global_steps.remote(step) for server in self._servers()])

    def stop(self) -> int:
        """End the engines, hand their GPUs back to Ray, and return how many Ray counts as free again."""
        if self._manager is None:
            return 0
        _shut_down_engines(self._servers())
        groups = []
        for replica in self._manager.rollout_replicas:
            _kill_all([*replica.servers, *replica.workers])
            groups += replica.resource_pool.pgs or []
        ray.kill(self._manager.global_load_balancer)
        self._manager = None
        return _release(groups)

    def _servers(self) -> list[Any]:
        return [server for replica in self._manager.rollout_replicas for server in replica.servers]


def _shut_down_engines(servers: list[Any]) -> None:
    """Ask vLLM to end its engine processes; killing the Ray actor alone would orphan them."""
    calls = [server.__ray_call__.remote(lambda self: self.engine.shutdown()) for server in servers]
    _done, late = ray.wait(calls, num_returns=len(calls), timeout=60)
    if late:
        logger.warning("%d of %d explorer engines did not end within 60 s and are killed", len(late), len(calls))


def _release(groups: list[Any], timeout_s: float = 30.0) -> int:
    """Remove the placement groups, wait until Ray has, and return the GPUs they held."""
    for group in groups:
        ray.util.remove_placement_group(group)
    deadline = time.monotonic() + timeout_s
    waiting = list(groups)
    while waiting and time.monotonic() < deadline:
        time.sleep(0.1)
        waiting = [group for group in waiting if ray.util.placement_group_table(group)["state"] != "REMOVED"]
    released = sum(_gpus(group) for group in groups if group not in waiting)
    level = logging.WARNING if waiting else logging.INFO
    logger.log(level, "explorer servers stopped, %d of their %d GPUs released", released, sum(map(_gpus, groups)))
    return released


def _gpus(group: Any) -> int:
    """Accelerators reserved by a placement group, whatever Ray calls them here."""
    return int(sum(bundle.get(get_resource_name(), 0) for bundle in group.bundle_specs))


def _kill_all(actors: list[Any]) -> None:
    for actor in actors:
        ray.kill(actor)
