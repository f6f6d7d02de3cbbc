"""Actors that die in a step: which ones are watched, which ones Ray restarts, and how a wait for them ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from threading import Event, Thread, current_thread, main_thread
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.experimental.reward_loop.reward_loop import RewardLoopManager, RewardLoopWorker
from verl.workers.rollout.llm_server import LLMServerManager
from verl.workers.rollout.router import DEFAULT_ROUTING_CACHE_SIZE, GlobalRequestLoadBalancer

from s2l_ext.errors import S2LError
from s2l_ext.platforms.patches.training import replace_managers
from s2l_ext.training.registration import QUEUE

logger = logging.getLogger(__name__)

REWARD_RESTARTS = 3
"""How often Ray restarts one reward worker and repeats its open requests."""


class RestartedRewardLoop(RewardLoopManager):
    """verl's manager. The one change: Ray restarts a dead worker and repeats its requests, as workers keep no state."""

    def _init_reward_loop_workers(self) -> None:
        restarted = ray.remote(max_restarts=REWARD_RESTARTS, max_task_retries=REWARD_RESTARTS)
        self.reward_loop_workers_class = restarted(RewardLoopWorker)
        super()._init_reward_loop_workers()


def beside_trainer(actor: type) -> Any:
    """An actor class pinned to this process's node, so that losing another node does not end its actors."""
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(actor).options(num_cpus=0, scheduling_strategy=here)


class RouterBesideTrainer(LLMServerManager):
    """verl's manager. The one change: the learner's router runs on the trainer's node."""

    async def _init_global_load_balancer(self) -> None:
        if self._load_balancer_cls is not None or self.rollout_config.get("router_config_path"):
            return await super()._init_global_load_balancer()
        self.global_load_balancer = beside_trainer(GlobalRequestLoadBalancer).remote(
            servers=dict(zip(self.server_addresses, self.server_handles, strict=True)),
            max_cache_size=DEFAULT_ROUTING_CACHE_SIZE,
            full_determinism=bool(self.rollout_config.get("full_determinism", False)),
        )
        return None


def own_managers() -> AbstractContextManager[None]:
    """Inside this block verl's trainers build the managers of this file."""
    return replace_managers(RestartedRewardLoop, RouterBesideTrainer)


def own_actors(trainer: Any) -> dict[str, Any]:
    """Actors that a step waits for without checking that they live, by the name for messages."""
    queue = trainer.config.transfer_queue.backend
    units = queue.SimpleStorage.num_data_storage_units if queue.storage_backend == "SimpleStorage" else 0
    kinds = {
        "reward worker": trainer.get_reward_handles() or [],
        "agent-loop worker": trainer.agent_loop_manager.agent_loop_workers,
        "TransferQueue storage unit": [ray.get_actor(f"TransferQueueStorageUnit#{number}") for number in range(units)],
        "the learner's router": [_server_manager(trainer).global_load_balancer],
        "TransferQueue controller": [ray.get_actor(**QUEUE)],
    }
    return {f"{kind} {number}": one for kind, actors in kinds.items() for number, one in enumerate(actors)}


def _server_manager(trainer: Any) -> Any:
    """The manager whose router assigns sessions; in ``separate_async`` that of the servers on separate GPUs."""
    return getattr(trainer, "standalone_server_manager", None) or trainer.llm_server_manager


class Actors:
    """Polls actors for their process id without waiting for answers: a busy actor answers late, a dead one at once."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._actors = dict(named)
        self._asked: dict[str, Any] = {}
        self._pids: dict[str, int] = {}
        self.restarts = 0

    def check(self) -> None:
        """Raise S2LError for an actor that is dead for good; count those that Ray restarted."""
        for name, actor in self._actors.items():
            if name not in self._asked:
                self._asked[name] = actor.__ray_call__.remote(lambda _: os.getpid())
            if ray.wait([self._asked[name]], timeout=0)[0]:
                self._read(name, self._asked.pop(name))

    def _read(self, name: str, asked: Any) -> None:
        try:
            pid = ray.get(asked)
        except ActorDiedError as error:
            raise S2LError(
                f"{name} died and is not started again. The same command resumes from the last checkpoint. Ray says: "
                f"{' '.join(str(error).split())[:500]}"
            ) from error
        except ActorUnavailableError:
            return  # Ray is restarting it
        if self._pids.setdefault(name, pid) != pid:
            self._pids[name] = pid
            self.restarts += 1
            logger.warning("s2l: %s died and was started again", name)


LOOK_SECONDS, GRACE_SECONDS, LAST_SECONDS = 2.0, 15.0, 60.0
SIGNAL = signal.SIGUSR2


class ActorWatchdog:
    """Polls actors from a background thread (``actors.check`` raises S2LError when one is dead for good). On failure:

    1. the next :meth:`check` raises the error;
    2. if none comes within ``grace_s`` seconds, a signal raises it in the call that blocks the trainer's thread;
    3. if :meth:`end` is not called within ``last_s`` seconds after that, the process exits.

    Step 2 is needed because TransferQueue's client waits for its controller without a time limit.
    """

    def __init__(self, actors: Actors, grace_s: float = GRACE_SECONDS, last_s: float = LAST_SECONDS) -> None:
        self._actors, self._grace_s, self._last_s = actors, grace_s, last_s
        self._problem: S2LError | None = None
        self._over, self._raised = Event(), Event()
        self._interrupts = current_thread() is main_thread()
        if self._interrupts:
            signal.signal(
                SIGNAL, self._interrupt
            )  # never removed: a late signal without a handler would end the process
        Thread(target=self._run, name="s2l-watchdog", daemon=True).start()

    @property
    def restarts(self) -> int:
        return self._actors.restarts

    def check(self) -> None:
        """Raise S2LError when something is dead."""
        if self._problem is not None:
            self._raised.set()
            raise self._problem

    def end(self) -> None:
        """Stop polling and raise what was found, even if it caused another error meanwhile."""
        self._over.set()
        self.check()

    def _run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                self._actors.check()
            except S2LError as error:
                self._problem = error
                self._raise_or_end()
                return
            except Exception:
                logger.warning("s2l: asking actors whether they live failed", exc_info=True)

    def _raise_or_end(self) -> None:
        if not (self._raised.wait(self._grace_s) or self._over.is_set()) and self._interrupts:
            signal.pthread_kill(main_thread().ident or 0, SIGNAL)
        if not self._over.wait(self._last_s):
            print(f"s2l: error: {self._problem}", file=sys.stderr, flush=True)
            os._exit(2)

    def _interrupt(self, *_: object) -> None:
        if not self._over.is_set():
            self.check()
