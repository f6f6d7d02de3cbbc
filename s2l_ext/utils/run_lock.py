"""One writer per folder. The kernel frees the lock with the process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from s2l_ext.errors import ResourceError

FILE_NAME = ".lock"
TRIES, TRY_SECONDS = 4, 0.1
NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""A parallel file system mounted without locks: the file's content alone decides."""


@contextlib.contextmanager
def held(
    folder: Path, who: str, mend: str, token: str = "", on_left: Callable[[dict[str, Any]], None] | None = None
) -> Iterator[None]:
    """Hold the folder; it is created if missing.

    A lock that a dead process of this host left is taken over. One of another host is not: whether that process is
    alive cannot be seen from here.

    Args:
        who: what the holder is called in the message ("training run").
        mend: how to go on beside the holder, a sentence without its end.
        token: written beside process id and host.
        on_left: called with the content of a lock that is taken over.

    Raises:
        ResourceError: another process works in the folder; names its process id and host.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    with open(path, "a+", encoding="utf-8") as file:
        locked = _taken(file)
        left = _content(path)
        if locked is False or _still_held(left, trust_kernel=locked is True):
            raise _refusal(path, left, who, mend)
        if left and on_left:
            on_left(left)
        _replace(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "token": token}))
        try:
            yield
        finally:
            _replace(file, "")


def is_held(folder: Path) -> bool:
    """Whether a process of this host works in the folder now."""
    try:
        with open(folder / FILE_NAME, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _taken(file: Any) -> bool | None:
    """None where the file system has no locks. Tries a few times: :func:`is_held` holds the lock for a moment."""
    for _ in range(TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in NO_LOCKS_HERE:
                return None
            time.sleep(TRY_SECONDS)
    return False


def _still_held(left: dict[str, Any], trust_kernel: bool) -> bool:
    if not left:
        return False
    if left.get("host") != socket.gethostname():
        return True
    pid = left.get("pid")
    return not trust_kernel and isinstance(pid, int) and psutil.pid_exists(pid)


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


def _refusal(path: Path, holder: dict[str, Any], who: str, mend: str) -> ResourceError:
    return ResourceError(
        f"{path.parent}: another {who} works here: process {holder.get('pid', 'unknown')} on host "
        f"{holder.get('host', 'unknown')}. {mend}. If that host is gone or has no such process, remove {path}."
    )
