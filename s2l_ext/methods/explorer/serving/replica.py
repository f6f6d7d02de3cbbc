"""One replica of the explorer: start, health check, and end with every process it has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any

import ray
from ray._private import state as ray_state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.utils.device import get_resource_name

from s2l_ext.utils.processes import Process, family, kill_processes

logger = logging.getLogger(__name__)

END_TIMEOUT_S = 60.0
LOOK_TIMEOUT_S = 15.0
"""Seconds in which nodes say what processes an actor has, before it is killed without knowing."""


class Replica:
    """A replica that keeps its identity, verl's ``rank``, across engine restarts. ``build`` makes verl's object, not
    yet started; its argument makes the actors' names of each start unique."""

    def __init__(self, build: Callable[[str], Any], rank: int, gpus: int) -> None:
        self._build, self.rank, self.gpus = build, rank, gpus
        self._verls: Any = None
        self._processes: dict[str, list[Process]] = {}
        self._starts = 0

    def adopt(self, replica: Any) -> None:
        """A replica that verl started."""
        self._verls = replica
        self._found(_find_processes(replica))

    @property
    def address(self) -> str:
        return (self._verls and self._verls.server_address) or f"explorer replica {self.rank}"

    @property
    def handle(self) -> Any:
        """The actor that takes requests."""
        return self._verls.server_handle

    @property
    def servers(self) -> list[Any]:
        return list(self._verls.servers) if self._verls else []

    def ask(self) -> list[Any]:
        """One call per server that returns if it lives. The first goes through engine core and every worker.

        It generates nothing: a generation would wait in a full queue like any other request.
        """
        first, *others = self.servers
        return [
            first.collective_rpc.remote(method="check_health"),
            *(one.get_master_address.remote() for one in others),
        ]

    def start(self, timeout_s: float, over: Event) -> None:
        """Place and start new engines and let them generate one token. Nothing is built once ``over`` is set. Raises
        TimeoutError after ``timeout_s`` seconds, and any error of Ray, verl or vLLM.

        The start runs in a thread that is abandoned after ``timeout_s``: verl waits for its placement group, and vLLM
        for its engine, without a time limit.
        """
        deadline = time.monotonic() + timeout_s
        self._starts += 1
        _wait_for_room(self.gpus, deadline, over)
        if over.is_set():
            return
        verls = self._verls = self._build(f"again{self._starts}")
        outcome: Queue[Exception | dict[str, list[Process]]] = Queue()
        Thread(target=self._make, args=(verls, outcome), daemon=True).start()
        try:
            result = outcome.get(timeout=max(1.0, deadline - time.monotonic()))
        except Empty:
            raise TimeoutError(f"not ready within {timeout_s:g} s") from None
        if isinstance(result, Exception):
            raise result
        if self._verls is verls:
            self._found(result)

    def _make(self, verls: Any, outcome: Queue) -> None:
        """The thread of a start: ends itself what was made while :meth:`kill` ran, or after it."""
        result: Exception | dict[str, list[Process]]
        try:
            _start(verls)
            result = _find_processes(verls)
        except Exception as error:
            result = error
        killed = self._verls is not verls
        outcome.put(result)
        if killed:
            release(_end(verls, {}))

    def _found(self, processes: dict[str, list[Process]]) -> None:
        self._processes = processes
        ids = " ".join(str(pid) for own in processes.values() for pid, _ in own)
        logger.info("explorer replica %d: server %s, processes %s", self.rank, self.address, ids)

    def shut_down(self) -> None:
        """Ask vLLM to end its engine processes."""
        calls = [server.__ray_call__.remote(lambda self: self.engine.shutdown()) for server in self.servers]
        _done, late = ray.wait(calls, num_returns=len(calls), timeout=END_TIMEOUT_S) if calls else ([], [])
        if late:
            logger.warning("%d of %d explorer engines did not end within 60 s and are killed", len(late), len(calls))

    def kill(self) -> list[Any]:
        """End every process, hanging ones too, and return the placement groups it leaves.

        vLLM's engine processes are not Ray's children and outlive a killed actor.
        """
        if self._verls is None:
            return []
        verls, processes = self._verls, self._processes
        self._verls, self._processes = None, {}
        return _end(verls, processes)


def _start(replica: Any) -> None:
    asyncio.run(replica.init_standalone())
    request = {"prompt_ids": [0], "sampling_params": {"max_tokens": 1, "temperature": 0.0}, "request_id": "start"}
    ray.get(replica.server_handle.generate.remote(**request))


def _end(replica: Any, processes: dict[str, list[Process]]) -> list[Any]:
    """Kill the processes, or those that Ray can still name, and the actors; return the placement groups."""
    actors = [*replica.servers, *replica.workers]
    kills = [_kill_on(node, ids) for node, ids in (processes or _look_up(actors)).items()]
    if kills:
        ray.wait(kills, num_returns=len(kills), timeout=END_TIMEOUT_S)
    for actor in actors:
        with contextlib.suppress(Exception):  # it is dead, or its node is
            ray.kill(actor)
    return _groups(replica.resource_pool)


def _wait_for_room(gpus: int, deadline: float, over: Event) -> None:
    """Wait for free accelerators: a lost node may return, or another may join. Returns at once when ``over`` is set."""
    name = get_resource_name()
    while not over.is_set() and ray.available_resources().get(name, 0) < gpus:
        if time.monotonic() > deadline:
            raise TimeoutError(f"too few free {name} for {gpus}: {ray.available_resources().get(name, 0):g} are free")
        over.wait(1.0)


def _find_processes(replica: Any) -> dict[str, list[Process]]:
    """By node: every process to end, as the actors see them while they live."""

    def own(_actor: Any) -> tuple[str, list[Process]]:
        return ray.get_runtime_context().get_node_id(), family()

    calls = [actor.__ray_call__.remote(own) for actor in [*replica.servers, *replica.workers]]
    found: dict[str, list[Process]] = {}
    for node, processes in ray.get(calls, timeout=END_TIMEOUT_S):
        found.setdefault(node, []).extend(processes)
    return found


def _look_up(actors: list[Any]) -> dict[str, list[Process]]:
    """By node: living actors' processes by Ray's table; an actor that loads its engine answers no question."""
    pids: dict[str, list[int]] = {}
    with contextlib.suppress(Exception):
        for entry in [ray_state.actors(actor._actor_id.hex()) for actor in actors]:
            if entry.get("State") == "ALIVE":
                pids.setdefault(entry["Address"]["NodeID"], []).append(entry["Pid"])
    families = {_families_on(node, own): node for node, own in pids.items()}
    done, _ = ray.wait(list(families), num_returns=len(families), timeout=LOOK_TIMEOUT_S) if families else ([], [])
    found: dict[str, list[Process]] = {}
    for ref in done:
        with contextlib.suppress(Exception):  # the node is gone
            found[families[ref]] = ray.get(ref)
    return found


def _groups(pool: Any) -> list[Any]:
    """Placement groups of a pool; verl keeps none that was still pending when its start was given up."""
    if pool is None or pool.pgs:
        return list(pool.pgs) if pool else []
    table = ray.util.placement_group_table().values()
    names = [entry["name"] for entry in table if entry["state"] != "REMOVED"]
    own = [name for name in names if name.startswith(f"{pool.name_prefix}verl_group_")]
    return [ray.util.get_placement_group(name) for name in own]


def release(groups: list[Any], timeout_s: float = 30.0) -> int:
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


def _families_on(node: str, pids: list[int]) -> Any:
    def families() -> list[Process]:  # inside: sent by value, so that the worker process does not import verl
        return [one for pid in pids for one in family(pid)]

    return ray.remote(families).options(**_on(node)).remote()


def _kill_on(node: str, processes: list[Process]) -> Any:
    return ray.remote(kill_processes).options(**_on(node)).remote(processes)


def _on(node: str) -> dict[str, Any]:
    here = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": here}
