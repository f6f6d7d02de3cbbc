"""Processes of an actor, found and ended on its own node.

Apart from the rest: a worker process imports this module for one call, and importing verl would take it many seconds.
"""

from __future__ import annotations

import contextlib
from typing import Any

import psutil
import ray

Process = tuple[int, float]
"""Process id and the time it was created: ids are used again."""


def own_processes(_actor: Any) -> tuple[str, list[Process]]:
    """Node, and this process with all its descendants."""
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    return ray.get_runtime_context().get_node_id(), [(one.pid, one.create_time()) for one in family]


def kill_processes(processes: list[Process]) -> int:
    """SIGKILL those that still live, and return how many did."""
    killed = 0
    for pid, created in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)
            if process.create_time() == created:
                process.kill()
                killed += 1
    return killed
