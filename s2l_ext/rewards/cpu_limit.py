"""A limit on the CPU seconds of this process: what is decided in time does not depend on how busy the machine is."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

AGAIN_SECONDS = 0.25
"""The signal is repeated, for code that catches everything may swallow the first."""


class OutOfTime(BaseException):
    """The CPU seconds are used up. Not an Exception: libraries that catch those let it pass."""


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the body once this process has used ``seconds`` of CPU. In a main thread only."""
    before = signal.signal(signal.SIGPROF, _raise)
    signal.setitimer(signal.ITIMER_PROF, max(seconds, 0.001), AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _raise(number: int, frame: FrameType | None) -> None:
    raise OutOfTime


class Budget:
    """CPU seconds for a question, given out in steps."""

    def __init__(self, seconds: float, step: float) -> None:
        self._until = time.process_time() + seconds
        self._step = step
        self.ran_out = False

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """A step that is left where it stands when its time is up; :attr:`ran_out` says so."""
        left = min(self._step, self._until - time.process_time())
        try:
            with cpu_limit(left):
                yield
        except OutOfTime:
            self.ran_out = True
