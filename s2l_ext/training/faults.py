"""Actors that die in a step: which ones are watched, which Ray starts again, and how a wait for them ends."""

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
"""Times that Ray starts one reward worker again, and runs again what it was asked when it died."""


# ---- actors -------------------------------------------------------------------------------------------------------


class RestartedRewardLoop(RewardLoopManager):
    """verl's manager; the one change: Ray starts a dead worker, which keeps no state, and repeats what it was asked."""

    def _init_reward_loop_workers(self) -> None:
        restarted = ray.remote(max_restarts=REWARD_RESTARTS, max_task_retries=REWARD_RESTARTS)
        self.reward_loop_workers_class = restarted(RewardLoopWorker)
        super()._init_reward_loop_workers()


def beside_trainer(actor: type) -> Any:
    """An actor class whose actors live on this process's node, so that no other node takes them along."""
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(actor).options(num_cpus=0, scheduling_strategy=here)


class RouterBesideTrainer(LLMServerManager):
    """verl's manager; the one change: the learner's router lives beside the trainer."""

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
    """Those that a step waits for without asking whether they live, by the name that a message gives them."""
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
    """The one whose router hands out sessions: in ``separate_async`` that of the servers on GPUs of their own."""
    return getattr(trainer, "standalone_server_manager", None) or trainer.llm_server_manager


class Actors:
    """Asks actors for their process whenever it is told to, without waiting for answers."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._actors = dict(named)
        self._asked: dict[str, Any] = {}
        self._pids: dict[str, int] = {}
        self.restarts = 0

    def check(self) -> None:
        """Raise S2LError for one that is dead for good; count those that Ray started again."""
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
            return  # it is being started again
        if self._pids.setdefault(name, pid) != pid:
            self._pids[name] = pid
            self.restarts += 1
            logger.warning("s2l: %s died and was started again", name)


logger = logging.getLogger(__name__)

LOOK_SECONDS, GRACE_SECONDS, LAST_SECONDS = 2.0, 15.0, 60.0
SIGNAL = signal.SIGUSR2


class ActorWatchdog:
    """Asks actors in a thread of its own. What that raises is raised in the trainer's thread as well.

    First where that asks (:meth:`check`); if it has not asked within ``grace_s`` it is blocked, and a signal raises the
    error in the call that blocks; if nobody calls :meth:`end` after that, the process ends.

    Args:
        actors: their ``check`` raises S2LError when one is dead for good.
        grace_s: seconds in which the trainer's thread may ask by itself.
        last_s: seconds that it may then take to end.
    """

    def __init__(self, actors: Actors, grace_s: float = GRACE_SECONDS, last_s: float = LAST_SECONDS) -> None:
        self._actors, self._grace_s, self._last_s = actors, grace_s, last_s
        self._problem: S2LError | None = None
        self._over, self._raised = Event(), Event()
        self._interrupts = current_thread() is main_thread()
        if self._interrupts:
            signal.signal(SIGNAL, self._interrupt)  # and it stays: without one a late signal would end the process
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
        """No more looks; raises what was found, also when something else has made another error of it."""
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
