"""One pipeline per output folder, and an end to the processes of one that was killed."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

from s2l_ext.utils.run_lock import held, is_held

__all__ = ["MARKER", "end_processes", "is_held", "locked"]

MARKER = "S2L_PIPELINE_RUN"
"""Environment variable of every process that a stage starts; its value is the lock's token."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Hold the folder; yields the token that marks this run's processes.

    A lock whose process is gone is taken over, after the processes that it left have been ended.

    Raises:
        ResourceError: another pipeline works in the folder; names its process id and host.
    """
    token = uuid.uuid4().hex
    mend = "Wait for it or choose another --out"
    with held(folder, "pipeline", mend, token, lambda left: end_processes(str(left.get("token")))):
        yield token


def end_processes(token: str) -> None:
    """Kill every process with ``MARKER=token`` and its descendants, and wait until they are gone."""
    marked = [process for process in psutil.process_iter() if _has_token(process, token)]
    left = {process.pid: process for parent in marked for process in (parent, *_children(parent))}
    left.pop(os.getpid(), None)
    for process in left.values():
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(list(left.values()), timeout=10)


def _has_token(process: psutil.Process, token: str) -> bool:
    try:
        return process.environ().get(MARKER) == token
    except (psutil.Error, OSError):
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []
