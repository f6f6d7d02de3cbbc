"""One pipeline per output folder. The kernel frees the lock with the process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from s2l_ext.errors import ResourceError

FILE_NAME = ".lock"
TRIES, TRY_SECONDS = 4, 0.1
MARKER = "S2L_PIPELINE_RUN"
"""Environment variable of every process that a stage starts; its value is the lock's token."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Hold the folder; yields the token that marks this run's processes.

    A lock whose process is gone is taken over, after the processes that it left have been ended.

    Raises:
        ResourceError: another pipeline works in the folder; names its process id and host.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    with open(path, "a+", encoding="utf-8") as file:
        if not _taken(file):
            raise _held(path, _content(path))
        left = _content(path)
        if left and left.get("host") != socket.gethostname():
            raise _held(path, left)
        if left:
            end_processes(str(left.get("token")))
        token = uuid.uuid4().hex
        _replace(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "token": token}))
        try:
            yield token
        finally:
            _replace(file, "")


def _taken(file: Any) -> bool:
    """Tries a few times: `--status` holds the lock for a moment."""
    for _ in range(TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(TRY_SECONDS)
    return False


def is_held(folder: Path) -> bool:
    """Whether a pipeline works in the folder now."""
    try:
        with open(folder / FILE_NAME, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _replace(file: Any, text: str) -> None:
    """Emptied, not removed: a waiting process may have the file open."""
    file.truncate(0)
    file.write(text)
    file.flush()


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def _held(path: Path, holder: dict[str, Any]) -> ResourceError:
    return ResourceError(
        f"{path.parent}: another pipeline works here: process {holder.get('pid', 'unknown')} on host "
        f"{holder.get('host', 'unknown')}. Wait for it or choose another --out. If that host is gone, remove {path}."
    )


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
