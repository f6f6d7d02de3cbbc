"""A dead actor ends the step that waits for it: TransferQueue's client asks its controller without a time limit."""

from __future__ import annotations

import logging
import os
import signal
import sys
from threading import Event, Thread, current_thread, main_thread

from s2l_ext.errors import S2LError
from s2l_ext.training.faults import Actors

logger = logging.getLogger(__name__)

LOOK_SECONDS, GRACE_SECONDS, LAST_SECONDS = 2.0, 15.0, 60.0
SIGNAL = signal.SIGUSR2


class ActorWatchdog:
    """Asks actors in a thread of its own. What that raises is raised in the trainer's thread as well.

    First where that asks (:meth:`check`); if it has not asked within ``grace_s`` it is blocked, and a signal raises the
    error in the call that blocks; if nobody calls :meth:`end` after that, the process ends.

    Args:
        actors: their ``check`` raises S2LError when one is dead for good.
        grace_s: seconds in which the trainer's thread may ask by itself.
        last_s: seconds that it may then take to end.
    """

    def __init__(self, actors: Actors, grace_s: float = GRACE_SECONDS, last_s: float = LAST_SECONDS) -> None:
        self._actors, self._grace_s, self._last_s = actors, grace_s, last_s
        self._problem: S2LError | None = None
        self._over, self._told = Event(), Event()
        self._interrupts = current_thread() is main_thread()
        if self._interrupts:
            signal.signal(SIGNAL, self._interrupt)  # and it stays: without one a late signal would end the process
        Thread(target=self._run, name="s2l-watchdog", daemon=True).start()

    @property
    def restarts(self) -> int:
        return self._actors.restarts

    def check(self) -> None:
        """Raise S2LError when something is dead."""
        if self._problem is not None:
            self._told.set()
            raise self._problem

    def end(self) -> None:
        """No more looks; raises what was found, also when something else has made another error of it."""
        self._over.set()
        self.check()

    def _run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                self._actors.check()
            except S2LError as error:
                self._problem = error
                self._insist()
                return
            except Exception:
                logger.warning("s2l: asking actors whether they live failed", exc_info=True)

    def _insist(self) -> None:
        if not (self._told.wait(self._grace_s) or self._over.is_set()) and self._interrupts:
            signal.pthread_kill(main_thread().ident or 0, SIGNAL)
        if not self._over.wait(self._last_s):
            print(f"s2l: error: {self._problem}", file=sys.stderr, flush=True)
            os._exit(2)

    def _interrupt(self, *_: object) -> None:
        if not self._over.is_set():
            self.check()
