"""Monitors the explorer's servers from the driver: which are down, when they restart, what it cost."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from threading import Event, Lock, RLock, Thread
from typing import Any

import ray
from ray.exceptions import RayError

from s2l_ext.methods.explorer.config import LiveExplorer
from s2l_ext.methods.explorer.serving.client import ROUTER_TIMEOUT_S, first_line
from s2l_ext.methods.explorer.serving.replica import Replica, release

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""Seconds between two reads of the workers' reports."""


class ExplorerHealthStats:
    """What failed since the process started; outlives the servers, so that every step has its numbers."""

    def __init__(self) -> None:
        self.restarts = 0
        self._down_since: dict[int, float] = {}
        self._down_s = 0.0
        self._failed_requests = 0
        self._reported = (0.0, 0)
        self._lock = Lock()

    def down(self, rank: int, now: float) -> None:
        with self._lock:
            self._down_since.setdefault(rank, now)

    def back(self, rank: int, now: float) -> None:
        self.gone(rank, now)
        with self._lock:
            self.restarts += 1

    def gone(self, rank: int, now: float) -> None:
        """The server is no longer needed, so it does not count as down."""
        with self._lock:
            if rank in self._down_since:
                self._down_s += now - self._down_since.pop(rank)

    def saw_failed_requests(self, total: int) -> None:
        with self._lock:
            self._failed_requests = max(self._failed_requests, total)

    def down_seconds(self, now: float) -> float:
        """Summed over servers, including those still down."""
        with self._lock:
            return self._down_s + sum(now - since for since in self._down_since.values())

    def step_metrics(self, now: float | None = None) -> dict[str, float]:
        """``restarts`` since the start of the process; the others since the last call."""
        down_s = self.down_seconds(time.monotonic() if now is None else now)
        last_s, last_requests = self._reported
        self._reported = (down_s, self._failed_requests)
        return {
            "s2l/explorer/restarts": float(self.restarts),
            "s2l/explorer/failed_requests": float(self._failed_requests - last_requests),
            "s2l/explorer/down_seconds": down_s - last_s,
        }


class HealthMonitor(Thread):
    """Checks every replica, all of them up at first; ends and restarts those that do not answer, tells ``router``, the
    actor of :class:`ExplorerRouter`, and counts failures in ``stats``."""

    def __init__(
        self, explorer: LiveExplorer, replicas: Sequence[Replica], router: Any, stats: ExplorerHealthStats
    ) -> None:
        super().__init__(name="s2l-explorer-monitor", daemon=True)
        self._explorer, self._router, self._stats = explorer, router, stats
        self.up, self._down, self._given_up = list(replicas), list[Replica](), list[Replica]()
        self._restarts = 0
        self._step: int | None = None
        self._lock = RLock()
        self._over = Event()
        self._asked_at = time.monotonic()

    # ---- the driver's side ------------------------------------------------------------------------------------

    def set_step(self, step: int) -> None:
        """Set the weight version of new rows; a server that does not take it is checked."""
        with self._lock:
            self._step, replicas = step, list(self.up)
        calls = {replica: [one.set_global_steps.remote(step) for one in replica.servers] for replica in replicas}
        for replica, problem in answers(calls, self._explorer.health_timeout_s).items():
            if problem:
                self._router.suspect.remote(replica.address, problem)

    def status(self) -> dict[str, Any]:
        status = ray.get(self._router.status.remote(), timeout=ROUTER_TIMEOUT_S)
        self._stats.saw_failed_requests(status["failed_requests"])
        return status

    def stop(self) -> list[Replica]:
        """No more restarts. Returns every replica, up or not."""
        self._over.set()
        self.join(self._explorer.health_timeout_s)
        with self._lock:
            for replica in self._down:
                self._stats.gone(replica.rank, time.monotonic())
            return [*self.up, *self._down]

    # ---- the thread's side ------------------------------------------------------------------------------------

    def run(self) -> None:
        while not self._over.wait(POLL_S):
            try:
                self.poll_once()
            except Exception:
                logger.exception("s2l: polling the explorer's servers failed; the next one follows")

    def poll_once(self) -> None:
        """Check servers that workers reported at once, and all of them every ``health_interval_s``."""
        suspects = self.status()["suspects"]
        due = time.monotonic() - self._asked_at >= self._explorer.health_interval_s
        self._asked_at = time.monotonic() if due else self._asked_at
        with self._lock:
            asked = [replica for replica in self.up if due or replica.address in suspects]
        calls = {replica: replica.ask() for replica in asked}
        for replica, problem in answers(calls, self._explorer.health_timeout_s).items():
            if problem:
                self._mark_down(replica, problem)
            elif replica.address in suspects:
                self._readmit(replica)

    def _readmit(self, replica: Replica) -> None:
        with self._lock:
            if self._step is not None:  # before it takes requests: verl stamps rows with this number
                ray.get(
                    [server.set_global_steps.remote(self._step) for server in replica.servers], timeout=ROUTER_TIMEOUT_S
                )
            ray.get(self._router.add_servers.remote({replica.address: replica.handle}), timeout=ROUTER_TIMEOUT_S)

    def _mark_down(self, replica: Replica, problem: str) -> None:
        logger.warning("s2l: explorer server %s failed: %s", replica.address, problem)
        self._stats.down(replica.rank, time.monotonic())
        ray.get(self._router.forget.remote(replica.address), timeout=ROUTER_TIMEOUT_S)
        with self._lock:
            self.up.remove(replica)
            self._down.append(replica)
        if self._explorer.on_failure == "fail":
            ray.get(self._router.give_up.remote(f"server {replica.address}: {problem}"), timeout=ROUTER_TIMEOUT_S)
        Thread(target=self._restart, args=(replica, problem), daemon=True).start()

    def _restart(self, replica: Replica, problem: str) -> None:
        self._clean_up(replica)
        while not self._over.is_set():
            most = 0 if self._explorer.on_failure == "fail" else self._explorer.max_restarts
            if self._restarts >= most:
                return self._give_up(replica, problem)
            delay = self._explorer.restart_backoff_s * 2.0**self._restarts
            self._restarts += 1
            logger.warning("s2l: explorer restart %d of %d in %g s", self._restarts, most, delay)
            if self._over.wait(delay):
                return None
            try:
                replica.start(self._explorer.start_timeout_s, self._over)
                return self._rejoin(replica)
            except Exception as error:
                problem = f"restart failed: {first_line(error)}"
                logger.warning("s2l: explorer %s", problem)
                self._clean_up(replica)
        return None

    def _clean_up(self, replica: Replica) -> None:
        """An error here must not leave sessions waiting for a restart that never comes."""
        try:
            with contextlib.suppress(RayError):  # the router may have ended with the servers; status() reports that
                ray.get(self._router.forget.remote(replica.address), timeout=ROUTER_TIMEOUT_S)
            release(replica.kill())
        except Exception:
            logger.exception("s2l: something of explorer replica %d could not be cleared away", replica.rank)

    def _rejoin(self, replica: Replica) -> None:
        with self._lock:
            if self._over.is_set():  # the servers were stopped before this one was up
                return self._clean_up(replica)
            self._readmit(replica)
            self._down.remove(replica)
            self.up.append(replica)
            self._stats.back(replica.rank, time.monotonic())
        logger.warning("s2l: explorer server %s is back", replica.address)

    def _give_up(self, replica: Replica, problem: str) -> None:
        with self._lock:
            self._given_up.append(replica)
            hope = len(self._down) > len(self._given_up)
        logger.warning("s2l: explorer replica %d stays down: %s", replica.rank, problem)
        if not self.up and not hope:
            reason = f"s2l.explorer.max_restarts={self._explorer.max_restarts} are used up, at last: {problem}"
            ray.get(self._router.give_up.remote(reason), timeout=ROUTER_TIMEOUT_S)
            if self._explorer.on_failure == "learner":
                logger.warning("s2l: the learner samples the explorer's sessions for the rest of its schedule")


def answers(calls: Mapping[Replica, list[Any]], timeout_s: float) -> dict[Replica, str | None]:
    """What is wrong with each replica: None when all of its calls came back within ``timeout_s`` seconds."""
    refs = [ref for own in calls.values() for ref in own]
    done, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_s) if refs else ([], [])
    return {replica: _find_problem(own, set(done), timeout_s) for replica, own in calls.items()}


def _find_problem(refs: list[Any], done: set[Any], timeout_s: float) -> str | None:
    if not set(refs) <= done:
        return f"no answer within {timeout_s:g} s"
    try:
        ray.get(refs)
    except Exception as error:
        return first_line(error)
    return None
