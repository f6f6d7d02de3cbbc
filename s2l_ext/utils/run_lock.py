"""One writer per folder. The kernel frees the lock with the process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from s2l_ext.errors import ResourceError
from s2l_ext.utils.files import writable
from s2l_ext.utils.json_text import mapping_at

FILE_NAME = ".lock"
TRY_SECONDS = 0.5
"""Longer than :func:`is_held` holds the lock."""
NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""A parallel file system mounted without locks: the file's content alone decides."""


@contextlib.contextmanager
def held(
    folder: Path, who: str, fix: str, token: str = "", on_left: Callable[[dict[str, Any]], None] | None = None
) -> Iterator[None]:
    """Hold the folder, which is created if missing; ResourceError names another holder's process id and host, DataError
    a folder that cannot be made.

    A lock that a dead process of this host left is taken over (``on_left`` gets its content). One of another host is
    not: whether that process is alive cannot be seen from here. ``who`` and ``fix`` are for the message; ``token`` is
    written beside process id and host.
    """
    with writable(folder, "Choose another folder."):
        pass
    path, lock = folder / FILE_NAME, _lock(folder)
    locked = _acquire(lock, TRY_SECONDS)
    left = mapping_at(path)
    try:
        if locked is False or _still_held(left, trust_kernel=locked is True):
            raise ResourceError(
                f"{folder}: another {who} works here: process {left.get('pid', 'unknown')} on host "
                f"{left.get('host', 'unknown')}. {fix}. If that host is gone or has no such process, remove {path}."
            )
        if left and on_left:
            on_left(left)
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "token": token}))
        try:
            yield
        finally:
            path.write_text("")
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process of this host works in the folder now."""
    if not (folder / FILE_NAME).exists():
        return False
    lock = _lock(folder)
    try:
        return _acquire(lock, 0) is not True
    finally:
        lock.release()


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / FILE_NAME, mode=0o644, fallback_to_soft=False, preserve_lock_file=True)


def _acquire(lock: FileLock, seconds: float) -> bool | None:
    """None where the file system has no locks."""
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
        return None
    return True


def _still_held(left: dict[str, Any], trust_kernel: bool) -> bool:
    if not left:
        return False
    if left.get("host") != socket.gethostname():
        return True
    pid = left.get("pid")
    return not trust_kernel and isinstance(pid, int) and psutil.pid_exists(pid)
