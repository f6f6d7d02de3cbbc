"""When the explorer's servers start, sleep, wake and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event, Thread
from typing import Any, Generic, TypeVar

from verl.trainer.ppo.utils import Role

from s2l_ext.methods.explorer.config import LiveExplorer
from s2l_ext.methods.explorer.serving.colocated import ColocatedServers
from s2l_ext.methods.explorer.serving.health import ExplorerHealthStats
from s2l_ext.methods.explorer.serving.servers import ExplorerServers
from s2l_ext.training import label_selectors
from s2l_ext.training.needed import only_validates, steps_done

ACTOR_ROLES = (Role.Actor, Role.ActorRolloutRef, Role.ActorRollout)


class ExplorerLifecycle:
    """The servers of a live explorer, as long as a step needs them. ``slots``: explorer sessions of a group by step."""

    def __init__(self, explorer: LiveExplorer, slots: Callable[[int], int], trainer: Any) -> None:
        self.explorer, self.slots, self.trainer = explorer, slots, trainer
        self.faults = ExplorerHealthStats()
        self.servers: ExplorerServers | None = None
        self.num_gpus = 0
        self._restarts_placed = 0

    @contextmanager
    def around_setup(self) -> Iterator[None]:
        """verl loads the learner inside. A dedicated explorer's engines load at the same time."""
        early = self._start_early()
        with early or nullcontext():
            yield
        if self.is_needed():
            self.servers = early.result() if early else self._start()
            self.num_gpus = self.explorer.n_gpus

    def is_needed(self) -> bool:
        """Whether the next step's prompts, or prompts drawn before, need it. A validation never does."""
        if only_validates(self.trainer.config):
            return False
        return self.slots(self.trainer.global_steps + 1) > 0 or self.trainer.pending.need_explorer

    def _start(self) -> ExplorerServers:
        config, manager = self.trainer.config, self.trainer.resource_pool_manager
        if not self.explorer.is_colocated:
            return ExplorerServers(config, self.explorer, self.faults)
        role = next(role for role in ACTOR_ROLES if role in manager.mapping)
        return ColocatedServers(config, self.explorer, self.faults, manager.get_resource_pool(role))

    def _start_early(self) -> EarlyStart[ExplorerServers] | None:
        """Start early where the checkpoint's step alone tells whether the explorer will be needed.

        Not for colocated engines: two engines on one accelerator must start one after the other, because each
        measures the free memory.
        """
        config = self.trainer.config
        if self.explorer.is_colocated or self.trainer.mode != "sync" or only_validates(config):
            return None
        is_needed = self.slots(steps_done(config) + 1) > 0
        return EarlyStart(self._start, self._learner_is_placed) if is_needed else None

    def _learner_is_placed(self) -> bool:
        manager = getattr(self.trainer, "resource_pool_manager", None)
        pools = list(manager.resource_pool_dict.values()) if manager else []
        return pools != [] and all(pool.pgs is not None for pool in pools)

    def end_step(self) -> None:
        """End the servers once no step needs them any more."""
        if self.servers is None:
            return
        self.num_gpus = self.servers.num_gpus
        if not self.is_needed():
            self.num_gpus = max(0, self.num_gpus - self.servers.stop())
            self.servers = None

    def step_metrics(self) -> dict[str, float]:
        """Failures since the last step. A restarted server may be on another node, so placement is recorded again."""
        if self.faults.restarts != self._restarts_placed:
            self._restarts_placed = self.faults.restarts
            label_selectors.record(Path(self.trainer.config.trainer.default_local_dir))
        return self.faults.step_metrics()


T = TypeVar("T")
LOOK_SECONDS = 0.2


class EarlyStart(Generic[T]):
    """Calls ``start`` in a thread once ``placed`` holds: the first role may take whole nodes, so the learner is first.
    ``start``: may take long; :meth:`result` raises its errors. ``placed``: whether the learner has its GPUs."""

    def __init__(self, start: Callable[[], T], placed: Callable[[], bool]) -> None:
        self._start, self._placed = start, placed
        self._cancelled, self._awaited, self._outcome = Event(), Event(), Future[T]()
        Thread(target=self._run, name="early start", daemon=True).start()

    def _run(self) -> None:
        while not (self._awaited.is_set() or self._placed()):
            if self._cancelled.wait(LOOK_SECONDS):
                self._outcome.cancel()
                return
        try:
            self._outcome.set_result(self._start())
        except BaseException as error:
            self._outcome.set_exception(error)

    def result(self) -> T:
        """Wait for ``start``. The learner is ready now, so nothing else must be placed first."""
        self._awaited.set()
        return self._outcome.result()

    def __enter__(self) -> EarlyStart[T]:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        """After a failure nothing new is started; a start under way continues."""
        if failure is not None:
            self._cancelled.set()
