"""Runs one command and outlives nobody: when the pipeline that started it ends, by ``kill -9`` too, the command does.

``python -m s2l_ext.pipeline.guardian COMMAND...`` with a pipe as standard input. The pipe closes when the pipeline's
process ends. Processes that the command leaves behind become children of the guardian, so that it finds them all.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
POLL_MS = 100

_libc = ctypes.CDLL(None)


def main(command: Sequence[str]) -> int:
    """Exit code of the command; 128 + signal when a signal ended it."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pipe = sys.stdin.fileno()
    process = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    poller = select.poll()
    poller.register(pipe, select.POLLIN | select.POLLHUP)
    try:
        while process.poll() is None and not _closed(poller, pipe):
            pass
        code = process.returncode if process.returncode is not None else -signal.SIGKILL
    finally:
        _end_descendants()
    return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _closed(poller: select.poll, pipe: int) -> bool:
    return bool(poller.poll(POLL_MS)) and not os.read(pipe, 1)


def _end_descendants() -> None:
    """Kill until none is left: a process may start another while it is being killed."""
    while children := _descendants(os.getpid()):
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap(children)


def _reap(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            continue  # a grandchild: it comes to us when its parent is gone


def _descendants(root: int) -> list[int]:
    """Living processes below ``root``, from /proc; nearest first."""
    parents = {int(path.name): _parent(path) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found, nearest = [], [root]
    while nearest:
        nearest = [pid for pid, parent in parents.items() if parent in nearest]
        found += nearest
    return found


def _parent(folder: Path) -> int | None:
    """None for a process that has ended, waited for or not."""
    try:
        state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(parent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
