"""Peak memory of everything that a command started, Ray's and vLLM's processes included."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil

MARKER = "S2L_RUN_MARKER"
SAMPLE_SECONDS = 2.0


def run_processes(root_pid: int, marker: str) -> list[psutil.Process]:
    """``root_pid`` (a child of this process), every process with ``MARKER=marker``, and all their descendants.

    The marker finds processes whose parent is gone; descent finds Ray workers, whose titles overwrite the marker.
    """
    processes = {process.pid: process for process in psutil.process_iter(["ppid", "environ"])}
    members = {pid for pid, process in processes.items() if (process.info["environ"] or {}).get(MARKER) == marker}
    if root_pid in processes and processes[root_pid].info["ppid"] == os.getpid():
        members.add(root_pid)
    grew = True
    while grew:
        found = {pid for pid, process in processes.items() if process.info["ppid"] in members} - members
        members |= found
        grew = bool(found)
    return [processes[pid] for pid in members if pid in processes]


def total_bytes(processes: list[psutil.Process]) -> int:
    """Sum of proportional set sizes: a page that n processes share counts 1/n in each of them."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            info: Any = process.memory_full_info()
            total += getattr(info, "pss", 0) or info.rss
    return total


class PeakMemory:
    """Samples a command's memory in a thread while the block runs; ``peak_bytes`` afterwards."""

    def __init__(self, root_pid: int, marker: str) -> None:
        self.root_pid, self.marker = root_pid, marker
        self.peak_bytes = 0
        self._stop = threading.Event()

    def _watch(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            self.peak_bytes = max(self.peak_bytes, total_bytes(run_processes(self.root_pid, self.marker)))
            self._stop.wait(max(0.2, SAMPLE_SECONDS - (time.monotonic() - started)))

    @contextlib.contextmanager
    def watching(self) -> Iterator[PeakMemory]:
        thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(timeout=10)
