"""Grading beside the drawing: a slow reward must not hold the engines up, nor a fast engine fill the memory."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from s2l_ext.evaluation.engines import Response
from s2l_ext.store.reader import Rollout

WAITING = 1024


class Graders:
    """Threads that turn responses into graded ones, as verl's reward loop does.

    Args:
        graded: grades one response; called from several threads.
        waiting: responses that may wait for their grade before drawing pauses.
    """

    def __init__(self, graded: Callable[[Response], Rollout], workers: int, waiting: int = WAITING) -> None:
        self._graded, self._limit = graded, waiting
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grade")
        self._done: queue.SimpleQueue[Future[Rollout]] = queue.SimpleQueue()
        self._open = 0

    def grade(self, drawn: Iterable[list[Response]]) -> Iterator[Rollout]:
        """Every response of ``drawn`` with its grade, in the order in which grades are ready."""
        for responses in drawn:
            for response in responses:
                self._threads.submit(self._graded, response).add_done_callback(self._done.put)
                self._open += 1
            yield from self._ready(self._limit)
        yield from self._ready(0)

    def _ready(self, limit: int) -> Iterator[Rollout]:
        """What is graded by now; waits while more than ``limit`` are not."""
        while self._open > limit or (self._open and not self._done.empty()):
            found = self._done.get().result()
            self._open -= 1
            yield found

    def __enter__(self) -> Graders:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=kind is not None)
