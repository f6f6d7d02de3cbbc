"""math-verify in child processes, so that judging is safe in any thread, always ends, and never ends the caller.

math-verify stops a runaway expression (``9^{9^{9^9}}``) by SIGALRM, which Python delivers in a main thread only, and
verl scores in threads; without its timeouts such an answer would hang a reward worker for good. A child judges in its
own main thread. Its limits count CPU seconds of its own, so that a busy machine changes no verdict. One that overruns
even so, inside one long C call, is ended by the kernel; the other children continue meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from typing import Any, NamedTuple

from s2l_ext.errors import ResourceError
from s2l_ext.rewards.math_child import READY

HARD_SECONDS = 20.0
"""CPU seconds of a child for one question."""
STUCK_SECONDS, STUCK_FACTOR = 60.0, 10.0
"""A child is stuck, not slow, after this time of the wall clock, and after this many times its limit."""
START_SECONDS = 180.0
POOL_SIZE = min(4, max(2, os.cpu_count() or 1))
"""A verl run has one pool for each of its ``reward.num_workers``."""


class Verdict(NamedTuple):
    """Whether an answer is right, the answer as judged, and whether time ran out before that was known."""

    correct: bool
    extracted: str
    timed_out: bool = False


class Child:
    """A process that answers one question at a time. It starts at once and is waited for at its first question."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] = _spawn()
        self._ready = False

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply. OSError or ValueError when none comes in time (TimeoutError) or the process ended instead."""
        if self.process.poll() is not None:
            self.restart()
        if not self._ready:
            self._await_ready()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self._line(seconds)))

    def _await_ready(self) -> None:
        said = self._line(START_SECONDS).strip()
        if said != READY:
            reason = said or f"it ended with status {self.process.wait()}"
            raise ResourceError(
                f"the process that judges mathematics did not start ({reason}). Is math-verify installed? "
                f"Try: {sys.executable} -c 'import math_verify'"
            )
        self._ready = True

    def _line(self, seconds: float) -> str:
        assert self.process.stdout is not None
        poll = select.poll()  # select() fails on descriptors beyond 1023, which a Ray worker has
        poll.register(self.process.stdout, select.POLLIN)
        if not poll.poll(seconds * 1000):
            raise TimeoutError(f"no answer within {seconds} s")
        return self.process.stdout.readline()

    def restart(self) -> None:
        """Kill, and start a successor without waiting for it."""
        self.stop()
        self.process, self._ready = _spawn(), False

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


def _spawn() -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "s2l_ext.rewards.math_child"]
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment)
    except OSError as error:
        raise ResourceError(f"the process that judges mathematics cannot be started: {error}") from error


class Pool:
    """Children shared by all threads of a process; one more starts when all are busy, up to the asker's ``size``."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[Child] = []
        self.children: list[Child] = []

    def ask(self, question: dict[str, Any], seconds: float, size: int) -> dict[str, Any]:
        """A child's reply; empty when it was stuck or ended instead. ``seconds`` are of CPU, and the question holds
        them too.
        """
        child = self._take(size)
        try:
            return child.ask(question, max(STUCK_SECONDS, STUCK_FACTOR * seconds))
        except (OSError, ValueError):
            child.restart()
            return {}
        except BaseException:
            child.stop()
            raise
        finally:
            with self._changed:
                self._idle.append(child)
                self._changed.notify()

    def start(self, size: int) -> None:
        """Start children ahead of their first questions."""
        with self._changed:
            while len(self.children) < size:
                self._idle.append(self._new())

    def _take(self, size: int) -> Child:
        with self._changed:
            while not self._idle and len(self.children) >= size:
                self._changed.wait()
            return self._idle.pop() if self._idle else self._new()

    def _new(self) -> Child:
        child = Child()
        self.children.append(child)
        return child


POOL = Pool()


def _forget_pool() -> None:
    """A forked process must not share its parent's pipes."""
    global POOL
    POOL = Pool()


os.register_at_fork(after_in_child=_forget_pool)


def compare(
    text: str, gold: str, whole: bool, *, seconds: float | None = None, size: int | None = None, **options: Any
) -> Verdict:
    """Whether ``text`` (final, or with ``whole`` the text in which to find it) equals ``gold``, and the answer found in
    it. No verdict within ``seconds`` of CPU means wrong, and says so. ``size`` is the most children; ``options`` are
    those of :func:`math_equality.judge`.
    """
    limit = HARD_SECONDS if seconds is None else seconds
    question = {"text": text, "gold": gold, "whole": whole, "seconds": limit, **options}
    reply = POOL.ask(question, limit, size or POOL_SIZE)
    timed_out = not reply or reply.get("timed_out") is True
    return Verdict(reply.get("correct") is True, str(reply.get("extracted", "")), timed_out)


def read(gold: str) -> dict[str, Any]:
    """What the judge reads of a gold: ``kind`` and ``read`` of :func:`math_equality.read`; empty when time ran out."""
    return POOL.ask({"gold": gold, "seconds": HARD_SECONDS}, HARD_SECONDS, POOL_SIZE)


def start(size: int | None = None) -> None:
    """Start the children now: the first answer that needs one waits seconds less."""
    POOL.start(size or POOL_SIZE)
