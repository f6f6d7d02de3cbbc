"""Runs untrusted Python programs in confined processes, at the highest level of isolation that this machine grants.

docs/sandbox.md says what each level stops and what none does. Nothing of a program's text, of its tests or of its
results is ever executed, unpickled or compared in the calling process.
"""

from __future__ import annotations

import atexit
import json
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s2l_ext.errors import ConfigError
from s2l_ext.sandbox.levels import DEFAULT_MINIMUM, GUARANTEES, HIGHER, Level, parse_level
from s2l_ext.sandbox.walls import PRIVATE
from s2l_ext.sandbox.worker import Finished, Limits, SandboxUnavailable, Worker

__all__ = ["Finished", "Level", "Limits", "Sandbox", "SandboxUnavailable", "active_level", "default"]

MINIMUM_VARIABLE, LEVEL_VARIABLE = "S2L_SANDBOX_MINIMUM", "S2L_SANDBOX_LEVEL"
PACKAGES_VARIABLE, WORKERS_VARIABLE = "S2L_SANDBOX_PACKAGES", "S2L_SANDBOX_WORKERS"
MAX_WORKERS = 8

PROBE = """
import json, os
def blocked(action):
    try:
        action()
    except Exception:
        return True
    return False
def read():
    try:
        return open({canary!r}).read()
    except OSError:
        return ""
def connect():
    import socket
    socket.create_connection(("127.0.0.1", {port}), 1)
def write():
    open({canary!r}, "w").write("x")
print(json.dumps({{
    "network": blocked(connect), "reading": "canary" not in read(),
    "write": blocked(write) or True, "scratch": not blocked(lambda: open("probe", "w").write("x")),
    "environment": not any("S2L" in name for name in os.environ),
}}))
"""


class Sandbox:
    """A pool of zygotes of one level. Safe to use from many threads; each job takes one zygote.

    Without a ``level``, the highest that works here, found by trying; without ``workers``, one per CPU, at most 8.
    ``packages`` are folders that programs may import from besides the standard library.
    """

    def __init__(self, level: Level | None = None, workers: int | None = None, packages: Sequence[str] = ()) -> None:
        self.packages = [_checked_package(path) for path in packages]
        self.refused: dict[Level, str] = {}
        self._idle: list[Worker] = []
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(workers or min(MAX_WORKERS, len(os.sched_getaffinity(0))))
        self.level, first = self._find_level(sorted(Level, reverse=True) if level is None else [level])
        self.inner = first.inner
        self._idle.append(first)

    def _find_level(self, levels: list[Level]) -> tuple[Level, Worker]:
        for level in levels:
            try:
                worker = Worker(level, self.packages)
            except OSError as error:
                self.refused[level] = str(error)
                continue
            failed = _probe(worker)
            if not failed:
                return level, worker
            self.refused[level] = f"it started, but did not stop: {failed}"
            worker.close()
        reasons = "; ".join(f"{level.name.lower()}: {reason}" for level, reason in self.refused.items())
        raise SandboxUnavailable(f"no sandbox can be started here ({reasons}). {HIGHER}")

    def require(self, minimum: Level) -> None:
        """Raise SandboxUnavailable when the active level is below ``minimum``."""
        if self.level < minimum:
            raise SandboxUnavailable(
                f"untrusted programs would run at sandbox level {self.level.name.lower()}, below the minimum "
                f"{minimum.name.lower()}: {GUARANTEES[self.level]}. {HIGHER} Or lower the minimum: reward argument "
                f"minimum_level, or the environment variable {MINIMUM_VARIABLE}."
            )

    def run(self, source: str, given: str | dict[str, Any], timeout_s: float, limits: Limits | None = None) -> Finished:
        """Run ``source`` as a script with the text ``given`` as its input, for at most ``timeout_s`` seconds of wall
        time; or load it in one process and run the tests of the job ``given`` in another (:attr:`Finished.verdict`).

        A zygote that fails is replaced, idle ones too, and the job is tried once more; then the caller fails.
        """
        with self._slots:
            for attempt in (1, 2):
                worker = self._take()
                try:
                    finished = worker.run(source, given, timeout_s, limits or Limits())
                except BaseException as error:
                    worker.close()
                    if not isinstance(error, OSError):
                        raise
                    self.close()  # what ended one zygote may have ended those that wait
                    if attempt == 2:
                        raise SandboxUnavailable(f"the sandbox failed twice: {error}") from error
                else:
                    with self._lock:
                        self._idle.append(worker)
                    return finished
        raise AssertionError

    def _take(self) -> Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        try:
            return Worker(self.level, self.packages)
        except OSError as error:
            raise SandboxUnavailable(f"sandbox level {self.level.name.lower()} stopped working: {error}") from error

    def close(self) -> None:
        """End all zygotes that are not busy."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()


def _checked_package(path: str) -> str:
    """A folder of packages as an absolute path. None of ``PRIVATE``: programs see their own there."""
    real = os.path.realpath(path)
    if not os.path.isdir(real) or real.startswith(f"{PRIVATE}/"):
        raise ConfigError(f"sandbox package folder {path!r} must be an existing folder outside {PRIVATE}")
    return real


def _probe(worker: Worker) -> str:
    """What this level should stop but does not; empty when all is well."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.NamedTemporaryFile("w") as canary:
        os.chmod(canary.name, 0o666)
        canary.write("canary")
        canary.flush()
        source = PROBE.format(port=server.getsockname()[1], canary=canary.name)
        try:
            finished = worker.run(source, "", 20.0, Limits())
            seen = {**json.loads(finished.stdout), "writing": Path(canary.name).read_text() == "canary"}
        except (OSError, ValueError) as error:
            return f"the probe itself ({error})"
    if worker.level is Level.LIMITS:
        return ""
    return ", ".join(name for name, well in seen.items() if not well)


_default: Sandbox | None = None
_default_lock = threading.Lock()


def default() -> Sandbox:
    """The process's own pool, made at first use from ``S2L_SANDBOX_LEVEL``, ``_WORKERS`` and ``_PACKAGES``."""
    global _default
    with _default_lock:
        if _default is None:
            level, workers = os.environ.get(LEVEL_VARIABLE), os.environ.get(WORKERS_VARIABLE)
            packages = list(filter(None, os.environ.get(PACKAGES_VARIABLE, "").split(os.pathsep)))
            if workers and not workers.isdecimal():
                raise ConfigError(f"{WORKERS_VARIABLE}={workers!r} is not a number of workers")
            _default = Sandbox(parse_level(level) if level else None, int(workers) if workers else None, packages)
        return _default


def minimum_level(configured: str | int | Level | None = None) -> Level:
    """The minimum in force: the argument, else ``S2L_SANDBOX_MINIMUM``, else ``landlock``."""
    chosen = os.environ.get(MINIMUM_VARIABLE) or DEFAULT_MINIMUM if configured is None else configured
    return parse_level(chosen)


def active_level() -> Level:
    """The level at which programs run in this process. Raises SandboxUnavailable when none works."""
    return default().level


def _forget() -> None:
    """A forked child must not share its parent's zygotes."""
    global _default, _default_lock
    _default, _default_lock = None, threading.Lock()


@atexit.register
def _close_default() -> None:
    if _default is not None:
        _default.close()


os.register_at_fork(after_in_child=_forget)
