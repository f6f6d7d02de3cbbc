"""The explorer's own vLLM replicas: a second, frozen model on its own GPUs."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf, open_dict
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
        model.path = explorer.model_path
        model.tokenizer_path = None
        model.lora_rank = 0
        model.lora_adapter_path = None
        rollout.update(
            nnodes=explorer.nnodes,
            n_gpus_per_node=explorer.n_gpus_per_node,
            tensor_model_parallel_size=explorer.tensor_model_parallel_size,
            load_format="auto",
        )
        copied.actor_rollout_ref.rollout = OmegaConf.merge(rollout, explorer.rollout_overrides)
    return copied


class ExplorerServers:
    """Starts, versions and stops the explorer's replicas. Holds no training state."""

    def __init__(self, config: DictConfig, explorer: ExplorerConfig) -> None:
        self._n_gpus = explorer.n_gpus
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
        for replica in self._manager.rollout_replicas:
            _kill_all([*replica.servers, *replica.workers])
            for group in replica.resource_pool.pgs or []:
                ray.util.remove_placement_group(group)
        ray.kill(self._manager.global_load_balancer)
        self._manager = None
        return _released(self._n_gpus)

    def _servers(self) -> list[Any]:
        return [server for replica in self._manager.rollout_replicas for server in replica.servers]


def _shut_down_engines(servers: list[Any]) -> None:
    """Ask vLLM to end its engine processes; killing the Ray actor alone would orphan them."""
    calls = [server.__ray_call__.remote(lambda self: self.engine.shutdown()) for server in servers]
    _done, late = ray.wait(calls, num_returns=len(calls), timeout=60)
    if late:
        logger.warning("%d of %d explorer engines did not end within 60 s and are killed", len(late), len(calls))


def _released(n_gpus: int, timeout_s: float = 30.0) -> int:
    """Wait until Ray counts the explorer's GPUs as free again, and say so."""
    deadline = time.monotonic() + timeout_s
    while (free := ray.available_resources().get("GPU", 0)) < n_gpus and time.monotonic() < deadline:
        time.sleep(0.2)
    released = min(int(free), n_gpus)
    level = logging.INFO if released == n_gpus else logging.WARNING
    logger.log(level, "explorer servers stopped, %d of their %d GPUs released", released, n_gpus)
    return released


def _kill_all(actors: list[Any]) -> None:
    for actor in actors:
        ray.kill(actor)
