"""Start-up side by side: the explorer's engines load while the learner's do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Event, Thread
from typing import Generic, TypeVar

T = TypeVar("T")
LOOK_SECONDS = 0.2


class EarlyStart(Generic[T]):
    """Calls ``start`` in a thread as soon as ``placed`` holds: who is placed first takes whole nodes.

    Args:
        start: takes its time; what it raises is raised by :meth:`result`.
        placed: whether the learner has its GPUs.
    """

    def __init__(self, start: Callable[[], T], placed: Callable[[], bool]) -> None:
        self._start, self._placed = start, placed
        self._cancelled, self._awaited, self._outcome = Event(), Event(), Future[T]()
        Thread(target=self._run, name="early start", daemon=True).start()

    def _run(self) -> None:
        while not (self._awaited.is_set() or self._placed()):
            if self._cancelled.wait(LOOK_SECONDS):
                self._outcome.cancel()
                return
        try:
            self._outcome.set_result(self._start())
        except BaseException as error:
            self._outcome.set_exception(error)

    def result(self) -> T:
        """Wait for ``start``, and for nobody else to be placed: this is asked when the learner is ready."""
        self._awaited.set()
        return self._outcome.result()

    def __enter__(self) -> EarlyStart[T]:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        """After a failure nothing is started any more; what has been started goes on."""
        if failure is not None:
            self._cancelled.set()
