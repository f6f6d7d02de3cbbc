"""How an agent-loop worker calls the explorer, notices a failure, and decides what its session does then."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from s2l_ext.methods.explorer.config import LiveExplorer
from s2l_ext.training.batch_fields import EXPLORER, LEARNER

POLL_S = 2.0
"""Seconds between two checks of a waiting session whether the explorer is back."""
ROUTER_TIMEOUT_S = 60.0


class ExplorerFailed(RuntimeError):
    """A server of the explorer did not answer a request, or there is none."""


class ExplorerClient(LLMServerClient):
    """verl's client. The changes: a time limit, one kind of error for a failed server, and a report to the router."""

    def __init__(self, *args: Any, timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_s = timeout_s
        self.server: str | None = None
        self._lb_require_acquire_fields = []  # known: else each session's copy would ask the router
        self._lb_require_release_fields = []

    def for_session(self) -> ExplorerClient:
        """A copy that remembers which server answers this session."""
        return copy.copy(self)

    async def _acquire_server(self, request_id: str, **extra: Any) -> tuple[str, Any]:
        self.server = None
        self.server, handle = await super()._acquire_server(request_id, **extra)
        return self.server, handle

    async def generate(self, request_id: Any, **kwargs: Any) -> TokenOutput:
        """As verl's. Raises ExplorerFailed: no server, a dead one, one that gave up the request, or no answer within
        the limit. Raises ValueError, TypeError: the request itself is refused, which says nothing against the
        server."""
        try:
            output = await asyncio.wait_for(super().generate(request_id, **kwargs), self.timeout_s)
        except TimeoutError as error:
            raise ExplorerFailed(f"no answer within {self.timeout_s:g} s") from error
        except (ValueError, TypeError):
            raise
        except Exception as error:
            raise ExplorerFailed(first_line(error)) from error
        if output.stop_reason in ("aborted", "abort"):
            raise ExplorerFailed("the server gave up the request")
        return output

    async def report(self, failure: ExplorerFailed) -> None:
        """Remove the server from load balancing until the driver has checked it."""
        await self._ask_router("report", self.server, str(failure))

    async def give_up(self, reason: str) -> None:
        await self._ask_router("give_up", reason)

    async def status(self) -> dict[str, Any]:
        return await self._ask_router("status")

    async def _ask_router(self, method: str, *args: Any) -> Any:
        return await asyncio.wait_for(getattr(self._load_balancer, method).remote(*args), ROUTER_TIMEOUT_S)


def first_line(error: Exception) -> str:
    """Of the cause: Ray's own text begins with a traceback of another process, an OSError's arguments with a number."""
    cause = getattr(error, "cause", None) or error
    message = getattr(cause, "strerror", None) or (cause.args[0] if cause.args else cause)
    lines = str(message).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0][:300] if lines else 'no message'}"


class SessionFaults:
    """What one explorer session does after each failure."""

    def __init__(self, explorer: LiveExplorer) -> None:
        self._policy = explorer.on_failure
        self._tries = explorer.max_restarts + 1
        self._failures = 0

    async def next_sampler(self, client: ExplorerClient, failure: ExplorerFailed) -> str:
        """Who samples the session now: the explorer again, once it is back, or the learner. Raises ExplorerFailed:
        nobody; the driver ends the run."""
        await client.report(failure)
        if self._policy == "learner":
            return LEARNER
        if self._policy == "fail":
            raise failure
        self._failures += client.server is not None
        if self._failures >= self._tries:
            await client.give_up(f"one session failed {self._failures} times, at last: {failure}")
            raise failure
        await self._until_back(client, failure)
        return EXPLORER

    async def _until_back(self, client: ExplorerClient, failure: ExplorerFailed) -> None:
        while True:
            status = await client.status()
            if status["given_up"]:
                raise failure
            if status["up"]:
                return
            await asyncio.sleep(POLL_S)


def carrying(client: LLMServerClient, explorer: LLMServerClient | None) -> LLMServerClient:
    """The learner's client, of whatever class verl's mode uses, with the explorer's to the agent-loop workers.

    What verl does to the learner's servers between steps (abort, sleep, new weights) never reaches the explorer's:
    its sessions continue.
    """
    client.explorer = explorer  # type: ignore[attr-defined]
    return client
