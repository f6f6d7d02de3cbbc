"""A stage's command in a process of its own, followed through its log and its metrics."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from s2l_ext.pipeline.lock import MARKER, end_processes
from s2l_ext.utils.secrets import masked_text

POLL_SECONDS = 0.2


def run_guarded(command: Sequence[str], log: Path, token: str, on_tick: Callable[[], None]) -> int:
    """Run ``command``, its output appended to ``log``; ``on_tick`` is called a few times a second and once at the end.

    Everything that the command started has ended when this ends, and ends too when this process is killed.

    Returns:
        The exit code, 128 + signal when a signal ended the command.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    guarded = [sys.executable, "-m", "s2l_ext.pipeline.guardian", *command]
    with open(log, "ab") as file:
        file.write(f"$ {masked_text(shlex.join(command))}\n".encode())
        file.flush()
        process = subprocess.Popen(
            guarded,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, MARKER: token, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    try:
        return _follow(process, on_tick)
    finally:
        _close(process)
        end_processes(token)


def _follow(process: subprocess.Popen[bytes], on_tick: Callable[[], None]) -> int:
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
        on_tick()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _close(process: subprocess.Popen[bytes]) -> None:
    """The guardian ends the command when its pipe closes; a guardian that does not answer is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def clock(seconds: float) -> str:
    """``1h02m``, ``3m05s``, ``12s``."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
