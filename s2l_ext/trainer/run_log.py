"""``metrics.jsonl`` of a run: one line per logged step, kept across restarts.

verl's own ``file`` logger opens its file for writing at start and so loses everything before a resume.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from s2l_ext.state import write_atomically

FILE_NAME = "metrics.jsonl"


class StepFile:
    """JSON lines that begin with their step; on resume, lines of steps that will be repeated are dropped.

    Args:
        path: the file.
        resumed_step: last step of the checkpoint, 0 for a fresh run (an earlier file is set aside, never lost).
    """

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        if resumed_step == 0:
            _set_aside(self.path)
        write_atomically(self.path, "".join(_kept_lines(self.path, resumed_step)))

    def write(self, step: int, fields: dict[str, Any]) -> None:
        line = json.dumps({"step": step, **fields})
        with open(self.path, "a") as file:
            file.write(line + "\n")


class RunLog(StepFile):
    """Append-only metrics file of a run's folder (``trainer.default_local_dir``)."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        super().__init__(folder / FILE_NAME, resumed_step)

    def append(self, step: int, data: dict[str, Any]) -> None:
        self.write(step, {"data": {key: _plain(value) for key, value in data.items() if not isinstance(value, dict)}})


def _set_aside(path: Path) -> None:
    """Keep what an earlier run that left no checkpoint has logged: ``metrics.1.jsonl``, ``metrics.2.jsonl``, ..."""
    if not path.exists() or not path.stat().st_size:
        return
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)


def _kept_lines(path: Path, resumed_step: int) -> list[str]:
    """Lines of steps that are in the checkpoint. A torn last line (the writer was killed) is dropped."""
    if resumed_step == 0 or not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= resumed_step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return kept


def _plain(value: Any) -> Any:
    """A JSON value: numpy and torch scalars become numbers, a non-finite number becomes null."""
    number = value.item() if hasattr(value, "item") else value
    return None if isinstance(number, float) and not math.isfinite(number) else number
