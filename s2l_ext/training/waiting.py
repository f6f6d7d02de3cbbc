"""A step that waits long logs what it waits for: which sessions of which prompts, their source, their stage."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from s2l_ext.methods.explorer.serving.client import first_line
from s2l_ext.training.batch_fields import EXPLORER, LEARNER
from s2l_ext.training.pending_prompts import PromptPlan

logger = logging.getLogger(__name__)

FIRST_S = 60.0
"""Seconds of waiting before the first line; each next one comes after twice as many."""
ANSWER_S = 5.0
SHOWN = 3


def ask_workers(workers: Sequence[Any], seconds: float = ANSWER_S) -> tuple[list[OpenSession], int]:
    """Open sessions of the agent-loop workers, and how many workers did not answer in time."""
    asked = [worker.__ray_call__.remote(open_sessions) for worker in workers]
    ready, silent = ray.wait(asked, num_returns=len(asked), timeout=seconds) if asked else ([], [])
    found: list[OpenSession] = []
    failed = 0
    for answer in ready:
        try:
            found += ray.get(answer)
        except RayError as error:
            failed += 1
            logger.warning("s2l: an agent-loop worker cannot say which sessions are open: %s", first_line(error))
    return found, len(silent) + failed


def waiting_of(trainer: Any) -> Waiting:
    """For a trainer. Lookups are lazy: verl builds the replay buffer before workers and plans exist."""
    return Waiting(
        lambda: ask_workers(trainer.agent_loop_manager.agent_loop_workers),
        lambda: trainer.pending.plans,
        trainer.s2l.rollout.session_timeout_s,
    )


class Waiting:
    """What the replay buffer waits for. ``ask`` gives open sessions and the number of workers that did not answer;
    ``plans`` those of the drawn prompts, by uid: a prompt of a validation has none."""

    def __init__(
        self,
        ask: Callable[[], tuple[Iterable[OpenSession], int]],
        plans: Callable[[], Mapping[str, PromptPlan]],
        limit_s: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._plans, self._limit_s, self._now = ask, plans, limit_s, now
        self.begin()

    def begin(self) -> None:
        """The buffer is asked for a batch."""
        self._started, self._next, self._clock = self._now(), FIRST_S, time.strftime("%H:%M:%S")

    def look(self, running: int, partition: str) -> None:
        """The buffer waits once more; ``running`` prompts of ``partition`` are not finished."""
        waited = self._now() - self._started
        if waited < self._next:
            return
        self._next *= 2
        sessions, silent = self._ask()
        logger.warning("s2l: %s", self._line(waited, running, partition, list(sessions), silent))

    def _line(self, waited: float, running: int, partition: str, sessions: list[OpenSession], silent: int) -> str:
        what = "the validation" if partition == "val" else "the step"
        begun = f"{what} has waited {waited:.0f} s (since {self._clock}) for {running} unfinished prompts"
        kinds = Counter((self._source(session), session.stage) for session in sessions)
        counts = ", ".join(f"{count} {source} {stage}" for (source, stage), count in sorted(kinds.items()))
        prompts = {session.uid for session in sessions}
        first = "; ".join(f"{one.uid} session {one.number}" for one in sessions[:SHOWN])
        parts = [f"{begun}: {len(sessions)} sessions of {len(prompts)} prompts are open ({counts}), first: {first}."]
        if not sessions:
            parts = [f"{begun}, and no agent-loop worker has an open session."]
        if silent:
            parts.append(f"{silent} agent-loop worker(s) did not say.")
        if self._limit_s is None and partition != "val":  # a validation has no limit
            parts.append("s2l.rollout.session_timeout_s would end a learner's session.")
        return " ".join(parts)

    def _source(self, session: OpenSession) -> str:
        plan = self._plans().get(session.uid)
        return EXPLORER if plan is not None and session.number < plan.explorer_rows else LEARNER


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
        # asyncio.wait_for makes two tasks of a session, and the inner one knows its stage
        if session is not None and (session[:2] not in found or session.stage != SAMPLING):
            found[session[:2]] = session
    return sorted(found.values())


def _tasks(worker: Any) -> set[asyncio.Task[Any]]:
    """verl keeps only the task of every prompt; the sessions' tasks run in the same loop."""
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
