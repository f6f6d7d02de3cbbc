"""Run a command so that nothing of it is left behind, however this process or the command ends.

``python -m s2l_ext.utils.processes COMMAND...`` is the guardian between the two: when its standard input closes,
because its parent ended, by ``kill -9`` too, it kills the command and all descendants. Those that the command leaves
behind become children of the guardian. Imports little: processes of other nodes import this module for one call.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from s2l_ext.utils.secrets import masked_text

MARKER = "S2L_RUN_MARKER"
"""Environment variable of every process of a command; finds those whose guardian was killed as well."""
POLL_SECONDS = 0.2
CLOSE_SECONDS = 15.0
END_SECONDS = 10.0
MEMORY_SECONDS = 2.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

Process = tuple[int, float]
"""Process id and the time it was created: ids are used again."""

_libc = ctypes.CDLL(None)


# ---- processes by id ------------------------------------------------------------------------------------------------


def family(pid: int | None = None) -> list[Process]:
    """A process (None: this one) with all its descendants; empty when it is gone."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return [(one.pid, one.create_time()) for one in (root, *root.children(recursive=True))]
    return []


def kill_processes(processes: Iterable[Process]) -> int:
    """SIGKILL those that still live, and return how many did."""
    killed = 0
    for pid, created in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)
            if process.create_time() == created:
                process.kill()
                killed += 1
    return killed


def end_marked(marker: str) -> None:
    """Kill every process with ``MARKER=marker`` and its descendants but this one, and wait until they are gone."""
    processes = psutil.process_iter(["environ"])
    marked = [process for process in processes if (process.info["environ"] or {}).get(MARKER) == marker]
    left = {one for process in marked for one in family(process.pid) if one[0] != os.getpid()}
    kill_processes(left)
    deadline = time.monotonic() + END_SECONDS
    while any(map(_lives, left)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _lives(one: Process) -> bool:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(one[0])
        return process.create_time() == one[1] and process.status() != psutil.STATUS_ZOMBIE
    return False


def memory_bytes(root: int) -> int:
    """Proportional set sizes of a process and its descendants: a page that n of them share counts 1/n in each."""
    total = 0
    for pid, _ in family(root):
        with contextlib.suppress(psutil.Error, OSError):
            info: Any = psutil.Process(pid).memory_full_info()
            total += getattr(info, "pss", 0) or info.rss
    return total


# ---- a command ------------------------------------------------------------------------------------------------------


class CommandFailed(Exception):
    """A command ended with an error; carries its log."""

    def __init__(self, what: str, returncode: int, log: Path) -> None:
        super().__init__(f"{what} failed with exit code {returncode}.")
        self.log = log


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (128 + signal if one ended it), wall-clock seconds, peak memory in bytes."""

    returncode: int
    seconds: float
    peak_bytes: int


def run_supervised(
    command: Sequence[str],
    log: Path,
    on_tick: Callable[[], None],
    environment: Mapping[str, str] | None = None,
    marker: str | None = None,
    measure_memory: bool = False,
) -> Ended:
    """Run ``command``, its output appended to ``log`` after a line with the command, its secrets masked. ``on_tick`` is
    called a few times a second and once at the end; ``environment`` is added to that of this process.

    Everything that the command started has ended when this ends, and ends too when this process is killed; ``marker``
    is the value of ``MARKER`` that finds it, by default one of its own.
    """
    marker = marker or uuid.uuid4().hex
    process = _start(command, log, {**os.environ, **(environment or {}), MARKER: marker, "PYTHONUNBUFFERED": "1"})
    started, sampled, peak = time.monotonic(), 0.0, 0
    try:
        while process.poll() is None:
            if measure_memory and time.monotonic() - sampled > MEMORY_SECONDS:
                peak, sampled = max(peak, memory_bytes(process.pid)), time.monotonic()
            on_tick()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        on_tick()
    finally:
        _close(process)
        end_marked(marker)
    return Ended(_exit_code(process), time.monotonic() - started, peak)


def _start(command: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        file.write(f"$ {masked_text(shlex.join(command))}\n".encode())
        file.flush()
        return subprocess.Popen(
            [sys.executable, "-m", "s2l_ext.utils.processes", *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _close(process: subprocess.Popen[bytes]) -> None:
    """The guardian ends the command when its pipe closes; a guardian that does not answer is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


# ---- the guardian ---------------------------------------------------------------------------------------------------


def guard(command: Sequence[str]) -> int:
    """Run ``command`` until it ends or standard input closes, then kill what it left. Returns its exit code."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pipe = sys.stdin.fileno()
    process = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    poller = select.poll()
    poller.register(pipe, select.POLLIN | select.POLLHUP)
    try:
        while process.poll() is None and not (poller.poll(100) and not os.read(pipe, 1)):
            pass
        return 128 + signal.SIGKILL if process.returncode is None else _exit_code(process)
    finally:
        _end_descendants()


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end_descendants() -> None:
    """Until none is left: a process may start another while it is killed, and becomes ours when its parent is gone."""
    while descendants := [one for one in family() if one[0] != os.getpid()]:
        kill_processes(descendants)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
