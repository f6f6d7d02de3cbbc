"""One short line per stage and per training step."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, TextIO

from s2l_ext.pipeline.plan import Decision
from s2l_ext.pipeline.process import clock
from s2l_ext.report.results import is_accuracy
from s2l_ext.training.run_log import FILE_NAME, TRAINING_MARK
from s2l_ext.utils import json_text
from s2l_ext.utils.follow import last_lines

WORDS = {"skip": "skipped", "run": "runs", "resume": "resumes", "export": "exports", "wait": "waits"}
LINES = 6
HEARTBEAT_SECONDS = 60.0


class Progress:
    """Writes to ``stream``: standard error where standard output carries JSON."""

    def __init__(self, total: int, stream: TextIO = sys.stdout) -> None:
        self.total, self.stream = total, stream
        self._head, self._started, self._said = "", time.monotonic(), time.monotonic()
        self._shown: tuple[int, float | None] = (0, None)

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)
        self._said = time.monotonic()

    def stage(self, number: int, name: str, decision: Decision) -> None:
        self._head = f"[{number}/{self.total}] {name}"
        self._started, self._shown = time.monotonic(), (0, None)
        self.say(f"{self._head}: {WORDS[decision.action]} ({decision.why})")

    def tick(self, run: Path, steps: int | None) -> None:
        """Say what is new in the run's metrics; without news a sign of life once a minute."""
        step, accuracy = latest(run / FILE_NAME)
        if (step, accuracy) != self._shown and step:
            self._shown = (step, accuracy)
            known = f", accuracy {accuracy:.3f}" if accuracy is not None else ""
            self.say(f"{self._head}: step {step}{f'/{steps}' if steps else ''}, {self._elapsed()}{known}")
        elif time.monotonic() - self._said > HEARTBEAT_SECONDS:
            self.say(f"{self._head}: {self._elapsed()}")

    def _elapsed(self) -> str:
        return clock(time.monotonic() - self._started)


def latest(path: Path) -> tuple[int, float | None]:
    """Last training step of a metrics file (0: none yet), and the last accuracy near its end."""
    step, accuracy = 0, None
    for line in last_lines(path, LINES):
        record = _record(line)
        data = record.get("data") or {}
        step = record["step"] if TRAINING_MARK in data else step
        found = [value for key, value in data.items() if is_accuracy(key) and value is not None]
        accuracy = sum(found) / len(found) if found else accuracy
    return step, accuracy


def _record(line: str) -> dict[str, Any]:
    """The line may be torn: a run is writing it."""
    try:
        record = json_text.loads(line)
        return record if isinstance(record, dict) else {}
    except ValueError:
        return {}
