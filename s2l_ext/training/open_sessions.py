"""Where a worker's unfinished sessions are, read from the coroutines that wait: verl keeps no list of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

SAMPLING, REWARD, RESTART = "sampling", "in the reward", "waiting for the explorer's restart"
STAGES = {"_compute_score": REWARD, "_until_back": RESTART}
"""Methods that a session waits in, and what it does there; anywhere else it samples."""


class OpenSession(NamedTuple):
    """One that has not ended: its prompt, its number in the group, and what it does."""

    uid: str
    number: int
    stage: str


def open_sessions(worker: Any) -> list[OpenSession]:
    """Of the agent-loop worker in whose process this is called, in its event loop or beside it."""
    found: dict[tuple[str, int], OpenSession] = {}
    for session in map(_session, _tasks(worker)):
        # with a time limit a session is two tasks, of which the inner one knows more
        if session is not None and (session[:2] not in found or session.stage != SAMPLING):
            found[session[:2]] = session
    return sorted(found.values())


def _tasks(worker: Any) -> set[asyncio.Task[Any]]:
    """verl keeps the task of every prompt: its loop has those of the sessions too."""
    loops = {task.get_loop() for task in list(getattr(worker, "background_tasks", ()))}
    return {task for loop in loops for task in asyncio.all_tasks(loop)}


def _session(task: asyncio.Task[Any]) -> OpenSession | None:
    frames = list(_frames(task.get_coro()))
    names = [frame.f_code.co_name for frame in frames]
    if "_run_agent_loop" not in names:
        return None
    values = frames[names.index("_run_agent_loop")].f_locals
    given = {**values.get("kwargs", {}), **values}
    stage = next((STAGES[name] for name in names if name in STAGES), SAMPLING)
    return OpenSession(str(given["uid"]), int(given["session_id"]), stage)


def _frames(coroutine: Any) -> Iterator[Any]:
    """Of a coroutine and of what it awaits, as long as that is a coroutine."""
    while getattr(coroutine, "cr_frame", None) is not None:
        yield coroutine.cr_frame
        coroutine = coroutine.cr_await
