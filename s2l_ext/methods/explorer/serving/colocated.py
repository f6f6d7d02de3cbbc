"""The explorer's replicas on the learner's accelerators (verl's colocated mode). They sleep during an update."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from omegaconf import DictConfig
from verl.single_controller.ray.base import RayResourcePool, split_resource_pool

from s2l_ext.errors import S2LError
from s2l_ext.methods.explorer.config import LiveExplorer
from s2l_ext.methods.explorer.serving.health import ExplorerHealthStats, answers
from s2l_ext.methods.explorer.serving.replica import Replica
from s2l_ext.methods.explorer.serving.servers import ExplorerServerManager, ExplorerServers, ending

logger = logging.getLogger(__name__)


class ColocatedReplica(Replica):
    """Never removes its placement group, which is the learner's, and holds no accelerators."""

    def kill(self) -> list[Any]:
        super().kill()
        return []


class ColocatedManager(ExplorerServerManager):
    """verl's manager. Its replicas take their bundles from the learner's pool."""

    def __init__(self, config: DictConfig, explorer: LiveExplorer, pool: RayResourcePool) -> None:
        super().__init__(config, explorer)
        self._size, self._pool = explorer.tensor_model_parallel_size, pool

    async def _initialize_llm_servers(self, start_rank: int | None = None) -> None:
        first = self.start_rank if start_rank is None else start_rank
        pools = split_resource_pool(self._pool, split_size=self._size)
        self.rollout_replicas = [self._new_replica(first + number, "") for number in range(len(pools))]
        await asyncio.gather(
            *[replica.init_colocated(pool) for replica, pool in zip(self.rollout_replicas, pools, strict=True)]
        )
        self.server_handles = [replica.server_handle for replica in self.rollout_replicas]
        self.server_addresses = [replica.server_address for replica in self.rollout_replicas]

    def replicas(self) -> list[Replica]:
        """They cannot restart: ``on_failure`` is ``fail``."""
        wrapped: list[Replica] = []
        for started in self.rollout_replicas:
            wrapped.append(ColocatedReplica(_never, started.replica_rank, gpus=0))
            wrapped[-1].adopt(started)
        return wrapped


def _never(suffix: str) -> Any:
    raise AssertionError("a colocated replica is not started again")


class ColocatedServers(ExplorerServers):
    """The explorer's servers, awake while rows are sampled."""

    def __init__(
        self, config: DictConfig, explorer: LiveExplorer, stats: ExplorerHealthStats, pool: RayResourcePool
    ) -> None:
        manager = ColocatedManager.create(config, explorer, pool)
        super().__init__(config, explorer, stats, manager)
        self.sleeps = bool(manager.rollout_config.free_cache_engine)
        self._awake = True
        when = "asleep during updates" if self.sleeps else "always awake (free_cache_engine=false)"
        logger.info("explorer colocated with the learner: %d replica(s), %s", len(manager.rollout_replicas), when)

    def sleep(self) -> None:
        """Move the weights to the host and drop the key-value cache."""
        self._turn("sleep", awake=False)

    def wake_up(self) -> None:
        self._turn("wake_up", awake=True)

    def _turn(self, call: str, awake: bool) -> None:
        """May take as long as a start, because it moves the same weights; the monitor finds a hanging server earlier.
        Raises S2LError: a server did not do it."""
        if not self.sleeps or not self.running or self._awake == awake:
            return
        calls = {one: [getattr(server, call).remote() for server in one.servers] for one in list(self._monitor.up)}
        problems = answers(calls, self._explorer.start_timeout_s)
        self.check()  # if the monitor ended the server meanwhile, this raises its reason
        for replica, problem in problems.items():
            if problem:
                raise S2LError(ending(self._explorer, f"server {replica.address}: {call}: {problem}"))
        self._awake = awake
