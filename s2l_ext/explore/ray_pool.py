"""Several engines as Ray actors. The only file of the folder that imports Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import ray

from s2l_ext.errors import ResourceError
from s2l_ext.evaluation.engines import Request, Response, Setup
from s2l_ext.platforms import CPU_ENVIRONMENT, cpu_chosen

TURN_SECONDS = 0.25
"""An actor steps its engine this long before it reports: short against a response, long against a call."""


class Worker:
    """One engine in its own process."""

    def load(self, setup: Setup) -> None:
        self.engine = setup.engine()

    def advance(self, requests: list[Request]) -> tuple[list[Response], int, int]:
        """Queue requests and step for a while: what finished, how many more requests fit, and how many are
        unfinished."""
        self.engine.add(requests)
        found: list[Response] = []
        until = time.monotonic() + TURN_SECONDS
        while self.engine.unfinished and time.monotonic() < until:
            found += self.engine.step()
        return found, self.engine.room, self.engine.unfinished

    def close(self) -> None:
        self.engine.close()


class RayPool:
    """Engines that take requests from one queue, each when it is free, so that none waits for a slower one."""

    def __init__(self, setup: Setup, engines: int, address: str | None = None) -> None:
        join(address)
        on_cpu = cpu_only(address) if address else setup.machine.on_cpu
        _require_resources(engines, 0 if on_cpu else setup.machine.tensor_parallel)
        options = _actor_options(on_cpu, setup.machine.tensor_parallel)
        actor: Any = ray.remote(Worker)
        self._actors: list[Any] = [actor.options(**options).remote() for _ in range(engines)]
        try:
            for call in [each.load.remote(setup) for each in self._actors]:
                _get_result(call)
        except BaseException:
            self.close()
            raise

    def draw(self, requests: Iterable[Request]) -> Iterator[list[Response]]:
        source = iter(requests)
        busy = {actor.advance.remote([]): actor for actor in self._actors}
        while busy:
            (done,), _ = ray.wait(list(busy), num_returns=1)
            actor = busy.pop(done)
            responses, room, unfinished = _get_result(done)
            more = list(islice(source, room))
            if more or unfinished:
                busy[actor.advance.remote(more)] = actor
            yield responses

    def close(self) -> None:
        """vLLM's own processes end first: to kill the actor alone would orphan them."""
        ray.wait([actor.close.remote() for actor in self._actors], num_returns=len(self._actors), timeout=60)
        for actor in self._actors:
            ray.kill(actor)


def cpu_only(address: str) -> bool:
    """Whether the cluster's engines compute on CPUs; what this process sees says nothing about it."""
    join(address)
    return cpu_chosen() or not ray.cluster_resources().get("GPU")


def join(address: str | None) -> None:
    """Be part of the cluster, or start one here. Ray leaves it when this process ends."""
    if ray.is_initialized():
        return
    local: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ResourceError(
            f"--ray-address {address}: no Ray cluster answers ({reason}). Start one with `ray start --head`, or leave "
            "the option and RAY_ADDRESS out."
        ) from error


def _require_resources(engines: int, gpus_each: int) -> None:
    """What a cluster does not have would be waited for silently."""
    total = ray.cluster_resources()
    for name, needed in (("GPU", engines * gpus_each), ("CPU", engines)):
        if total.get(name, 0) < needed:
            raise ResourceError(
                f"--engines {engines}: needs {needed} {name}s ({needed // engines} each); the Ray cluster has "
                f"{total.get(name, 0):g}. Lower --engines or --tensor-parallel, or add nodes."
            )


def _actor_options(on_cpu: bool, tensor_parallel: int) -> dict[str, Any]:
    if not on_cpu:
        return {"num_cpus": 1, "num_gpus": tensor_parallel}
    # Engines that bind their threads would all take the same cores.
    environment = {**CPU_ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {"num_cpus": 1, "runtime_env": {"env_vars": environment}}


def _get_result(call: Any) -> Any:
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ResourceError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        reason = " ".join(str(error).split())[:300]
        raise ResourceError(
            f"--engines: an engine's process ended ({reason}). Responses already drawn are kept; run the same command "
            "again, with fewer engines if memory is short."
        ) from error
