"""Run a command, follow what it writes, and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from s2l_ext.utils import json_text
from s2l_ext.utils.memory import MARKER, PeakMemory, run_processes

POLL_SECONDS = 0.5
GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, wall-clock seconds, peak memory in bytes."""

    returncode: int
    seconds: float
    peak_bytes: int


def run_followed(
    command: Sequence[str], environment: Mapping[str, str], log: Path, on_tick: Callable[[], None]
) -> Ended:
    """Run ``command`` with its output in ``log``; ``on_tick`` is called twice a second and once at the end.

    When this ends, by whatever way, every process that the command started has ended too.
    """
    marker = uuid.uuid4().hex
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, MARKER: marker, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    memory = PeakMemory(process.pid, marker)
    with memory.watching():
        try:
            while process.poll() is None:
                on_tick()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
            on_tick()
        finally:
            _end(process, marker)
    return Ended(process.returncode, time.monotonic() - started, memory.peak_bytes)


def _end(process: subprocess.Popen[bytes], marker: str) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    left = [other for other in run_processes(process.pid, marker) if other.pid != os.getpid()]
    for other in left:
        with contextlib.suppress(psutil.Error):
            other.terminate()
    _, alive = psutil.wait_procs(left, timeout=5)
    for other in alive:
        with contextlib.suppress(psutil.Error):
            other.kill()
    process.wait()


@dataclass
class Tail:
    """Complete lines appended to a file that may not exist yet."""

    path: Path
    _offset: int = 0
    _rest: bytes = field(default=b"", repr=False)

    def new_lines(self) -> list[str]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]

    def new_records(self) -> list[dict[str, Any]]:
        """New lines as JSON objects; others are skipped."""
        records = []
        for line in self.new_lines():
            with contextlib.suppress(ValueError):
                record = json_text.loads(line)
                if isinstance(record, dict):
                    records.append(record)
        return records


def last_lines(path: Path, count: int, max_bytes: int = 65536) -> list[str]:
    """Last non-empty lines of a text file; a carriage return (a progress bar) starts a new line."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - max_bytes))
        text = file.read().decode("utf-8", "replace")
    return [line for line in text.replace("\r", "\n").split("\n") if line.strip()][-count:]
