"""The explorer's own vLLM replicas: a second, frozen model on its own GPUs."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import ray
from omegaconf import DictConfig, OmegaConf, open_dict
from ray.exceptions import RayError
from verl.workers.rollout.llm_server import LLMServerManager
from verl.workers.rollout.router import GlobalRequestLoadBalancer

from s2l_ext.errors import S2LError
from s2l_ext.methods.explorer.config import LiveExplorer
from s2l_ext.methods.explorer.serving.client import ExplorerClient, first_line
from s2l_ext.methods.explorer.serving.health import ExplorerHealthStats, HealthMonitor
from s2l_ext.methods.explorer.serving.replica import Replica, release
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.faults import beside_trainer
from s2l_ext.training.label_selectors import FIRST_REPLICA_RANK, placed_replica


def explorer_config(config: DictConfig, explorer: LiveExplorer) -> DictConfig:
    """verl's configuration with the explorer's model and placement instead of the learner's rollout."""
    copied = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    with open_dict(copied):
        model, rollout = copied.actor_rollout_ref.model, copied.actor_rollout_ref.rollout
        point_to_model(model, explorer.model_path)
        rollout.update(
            nnodes=copied.trainer.nnodes if explorer.is_colocated else explorer.nnodes,
            n_gpus_per_node=copied.trainer.n_gpus_per_node if explorer.is_colocated else explorer.n_gpus_per_node,
            tensor_model_parallel_size=explorer.tensor_model_parallel_size,
            data_parallel_size=1,
            pipeline_model_parallel_size=1,
            expert_parallel_size=1,
            load_format="auto",  # verl's "dummy" waits for the trainer's weights, which this model never gets
            router_config_path=None,  # a router plugin is the learner's
        )
        for block, key in (("mtp", "enable_rollout"), ("prometheus", "enable")):  # of the learner's servers alone
            if rollout.get(block):
                rollout[block][key] = False
        copied.actor_rollout_ref.rollout = OmegaConf.merge(rollout, explorer.rollout_overrides)
    return cast(DictConfig, copied)


def point_to_model(model: DictConfig, path: str) -> None:
    """Make ``actor_rollout_ref.model`` describe another model, in place."""
    with open_dict(model):
        model.update(path=path, tokenizer_path=None, hf_config_path=None, lora_rank=0, lora_adapter_path=None)
        if model.get("lora"):
            model.lora.update(rank=0, adapter_path=None)  # Megatron's spelling


class ExplorerServerManager(LLMServerManager):
    """verl's manager. The changes: our router, pinned to the driver's node so that losing another node does not end it,
    and replicas that start and restart on the nodes of ``s2l.placement.explorer``."""

    def __init__(self, config: DictConfig, explorer: LiveExplorer) -> None:
        super().__init__(config=explorer_config(config, explorer), start_rank=FIRST_REPLICA_RANK)
        self._policy = explorer.on_failure
        selector = parse_s2l(config.get("s2l")).placement.explorer
        seconds = explorer.start_timeout_s
        self.rollout_replica_class = placed_replica(self.rollout_replica_class, selector, seconds)

    async def _init_global_load_balancer(self) -> None:
        self.global_load_balancer = beside_trainer(ExplorerRouter).remote(
            servers=dict(zip(self.server_addresses, self.server_handles, strict=True)),
            policy=self._policy,
            full_determinism=bool(self.rollout_config.get("full_determinism", False)),
        )
        self.router_started = self.global_load_balancer.status.remote()

    def replicas(self) -> list[Replica]:
        """Every replica that verl started, in a form that can restart."""
        wrapped = []
        for started in self.rollout_replicas:
            build = partial(self._new_replica, started.replica_rank)
            wrapped.append(Replica(build, started.replica_rank, started.world_size))
            wrapped[-1].adopt(started)
        return wrapped

    def _new_replica(self, rank: int, suffix: str) -> Any:
        return self.rollout_replica_class(
            replica_rank=rank,
            config=self.rollout_config,
            model_config=self.model_config,
            gpus_per_node=self.rollout_config.n_gpus_per_node,
            name_suffix=suffix,
        )


class ExplorerServers:
    """Starts, versions, watches and stops the explorer's replicas. Holds no training state."""

    def __init__(
        self,
        config: DictConfig,
        explorer: LiveExplorer,
        stats: ExplorerHealthStats,
        manager: ExplorerServerManager | None = None,
    ) -> None:
        self._explorer = explorer
        manager = manager or ExplorerServerManager.create(config=config, explorer=explorer)
        self._manager: ExplorerServerManager | None = manager
        self._monitor = HealthMonitor(explorer, manager.replicas(), manager.global_load_balancer, stats)
        self._monitor.start()

    @property
    def running(self) -> bool:
        return self._manager is not None

    @property
    def num_gpus(self) -> int:
        """GPUs of servers that are up; those of the others went back to Ray."""
        return sum(replica.gpus for replica in self._monitor.up) if self.running else 0

    def client(self) -> ExplorerClient | None:
        if self._manager is None:
            return None
        client = self._manager.get_client(client_cls=ExplorerClient, timeout_s=self._explorer.request_timeout_s)
        return cast(ExplorerClient, client)

    def set_step(self, step: int) -> None:
        """Set the weight version of new rows to ``step``: verl's staleness metrics read it, and a frozen model is never
        stale."""
        if self._manager:
            # its process imports verl for a while, longer than a call may take; agent loops start meanwhile
            ray.get(self._manager.router_started)
            self._monitor.set_step(step)

    def wake_up(self) -> None:
        """Called before verl sends the step's prompts, because sessions start before ``on_sample_begin``. The learner's
        engine has its new weights and its key-value cache since the last step's end."""

    def sleep(self) -> None:
        """Called when the step's rollouts are there. Servers on accelerators of their own take no turns."""

    def check(self) -> None:
        """Raise S2LError when the explorer failed and ``on_failure`` allows no replacement."""
        if self._manager is None or self._explorer.on_failure == "learner":
            return
        try:
            reason = self._monitor.status()["given_up"]
        except RayError as error:
            reason = f"its router is gone ({first_line(error)})"
        if reason:
            raise S2LError(ending(self._explorer, reason))

    def stop(self) -> int:
        """End the engines, return their GPUs to Ray, and return how many Ray counts as free again."""
        if self._manager is None:
            return 0
        replicas = self._monitor.stop()
        for replica in replicas:
            replica.shut_down()
        groups = [group for replica in replicas for group in replica.kill()]
        ray.kill(self._manager.global_load_balancer)
        self._manager = None
        return release(groups)


def ending(explorer: LiveExplorer, reason: str) -> str:
    ended = (
        f"the explorer failed: {reason}. s2l.explorer.on_failure={explorer.on_failure} ends the run here. The same "
        "command resumes from the last checkpoint"
    )
    if explorer.is_colocated:
        return f"{ended}. Only s2l.explorer.placement=dedicated can continue without it."
    others = {"fail": "wait (for its restart) or learner (which samples meanwhile)"}.get(explorer.on_failure, "learner")
    return f"{ended}. s2l.explorer.on_failure={others} lets a run continue."


class ExplorerRouter(GlobalRequestLoadBalancer):
    """Runs in an actor on the driver's node. The one change: a server reported as failed gets no more requests.
    ``policy``: ``s2l.explorer.on_failure``; with ``fail`` the first report is the end."""

    def __init__(self, servers: dict[str, Any], policy: str, full_determinism: bool = False) -> None:
        super().__init__(servers=servers, full_determinism=full_determinism)
        self._policy = policy
        self._failed_requests = 0
        self._suspects: dict[str, str] = {}
        self._given_up: str | None = None

    def report(self, server: str | None, reason: str) -> None:
        """A request failed; ``server`` is None when no server was available."""
        if server is not None:
            self._failed_requests += 1
            self.suspect(server, reason)
        if self._policy == "fail":
            self.give_up(f"{server or 'explorer'}: {reason}")

    def suspect(self, server: str, reason: str) -> None:
        if server in self._servers:
            self._suspects[server] = reason
            self.remove_servers([server])

    def give_up(self, reason: str) -> None:
        """Stop all waiting sessions. The first reason counts."""
        self._given_up = self._given_up or reason

    def add_servers(self, servers: dict[str, Any]) -> None:
        for server in servers:
            self._suspects.pop(server, None)
        super().add_servers(servers)

    def status(self) -> dict[str, Any]:
        """Active servers, suspected servers with the reason, failed requests since the start, and why it is over."""
        return {
            "up": list(self._servers),
            "suspects": dict(self._suspects),
            "failed_requests": self._failed_requests,
            "given_up": self._given_up,
        }

    def forget(self, server: str) -> None:
        """The server is dead: neither active nor suspected."""
        self._suspects.pop(server, None)
        self.remove_servers([server])
