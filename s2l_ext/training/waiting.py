"""A step that waits long logs for how many prompts, and since when."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

FIRST_S = 60.0
"""Seconds of waiting before the first line; each next one comes after twice as many."""


class Waiting:
    """The replay buffer's wait for a batch. ``limit_s``: of a learner's session, if it has one."""

    def __init__(self, limit_s: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._now = limit_s, now
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
        what = "the validation" if partition == "val" else "the step"
        line = f"{what} has waited {waited:.0f} s (since {self._clock}) for {running} unfinished prompts."
        line += " `ray stack` on a node shows what its processes do."
        if self._limit_s is None and partition != "val":  # a validation has no limit
            line += " s2l.rollout.session_timeout_s would end a learner's session."
        logger.warning("s2l: %s", line)
