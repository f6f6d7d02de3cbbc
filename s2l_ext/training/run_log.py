"""``metrics.jsonl`` of a run: one line per logged step, kept across restarts.

verl's own ``file`` logger opens its file for writing at start and so loses everything before a resume.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from s2l_ext.training.needed import TRACKER_FILE
from s2l_ext.utils.files import write_atomically

FILE_NAME = "metrics.jsonl"
TRAINING_MARK = "training/global_step"


class StepFile:
    """JSON lines that begin with their step. On resume, lines of steps that will be repeated move to
    ``<name>.dropped.jsonl``; nothing is deleted. ``path``: the file. ``resumed_step``: last step of the checkpoint; 0
    for a fresh run, which sets an earlier file aside (``<name>.1.jsonl``); None keeps every whole line."""

    def __init__(self, path: Path, resumed_step: int | None) -> None:
        self.path = path
        self.held_path = path.with_name(f".{path.name}.held")
        if resumed_step == 0:
            _set_aside(path)
            self.held_path.unlink(missing_ok=True)
        elif path.exists() or self.held_path.exists():
            self._rewind(math.inf if resumed_step is None else resumed_step)

    def write(self, step: int, fields: dict[str, Any]) -> None:
        _append(self.path, [_line(step, fields)])

    def hold(self, step: int, fields: dict[str, Any]) -> None:
        """Keep what is known of a step whose line comes later than its checkpoint; a run that is killed in between
        finds it here."""
        write_atomically(self.held_path, _line(step, fields))

    def _rewind(self, resumed_step: float) -> None:
        kept, dropped = _split(self.path, resumed_step)
        held = self.held_path.read_text() if self.held_path.exists() else ""
        lines = [line for line in map(json.loads, kept) if line["step"] == resumed_step]
        if held and json.loads(held)["step"] == resumed_step and not any(map(self._ends_step, lines)):
            kept.append(held)
        _append(self.path.with_name(f"{self.path.stem}.dropped{self.path.suffix}"), dropped)
        write_atomically(self.path, "".join(kept))

    def _ends_step(self, line: dict[str, Any]) -> bool:
        """Whether the line is the one that a step writes last."""
        return True


class RunLog(StepFile):
    """Append-only metrics file of a run's folder (``trainer.default_local_dir``). A fresh run sets verl's tracker aside
    too: killed before its first checkpoint, it must not go on from another run's."""

    def __init__(self, folder: Path, resumed_step: int | None) -> None:
        super().__init__(folder / FILE_NAME, resumed_step)
        if resumed_step == 0:
            _set_aside(folder / TRACKER_FILE)
        if not self.path.exists():
            write_atomically(self.path, "")

    def append(self, step: int, data: dict[str, Any]) -> None:
        self.write(step, {"data": _json_values(data)})

    def hold_metrics(self, step: int, data: dict[str, Any]) -> None:
        """:meth:`hold` for metrics of a training step."""
        self.hold(step, {"data": {TRAINING_MARK: step, **_json_values(data)}})

    def is_validated(self, step: int) -> bool:
        lines = map(json.loads, _split(self.path, step)[0])
        return any(line["step"] == step and is_validation(line["data"]) for line in lines)

    def _ends_step(self, line: dict[str, Any]) -> bool:
        """Validation writes its own line with the same step."""
        return TRAINING_MARK in line["data"]


def is_validation(data: Mapping[str, Any]) -> bool:
    """Whether metrics of a step have those of a validation."""
    return any(key.startswith("val-") for key in data)


def _line(step: int, fields: dict[str, Any]) -> str:
    return json.dumps({"step": step, **fields}) + "\n"


def _append(path: Path, lines: list[str]) -> None:
    if lines:
        with open(path, "a") as file:
            file.writelines(lines)


def _set_aside(path: Path) -> None:
    """Keep a file of an earlier run: ``metrics.1.jsonl``, ``metrics.2.jsonl``, ..."""
    if path.exists() and path.stat().st_size:
        names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count(1))
        path.rename(next(name for name in names if not name.exists()))


def _split(path: Path, resumed_step: float) -> tuple[list[str], list[str]]:
    """Lines of steps that are in the checkpoint, and the others. A torn last line (killed writer) is neither."""
    kept: list[str] = []
    dropped: list[str] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            (kept if json.loads(line)["step"] <= resumed_step else dropped).append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return kept, dropped


def _json_values(data: dict[str, Any]) -> dict[str, Any]:
    return {key: _json_value(value) for key, value in data.items() if not isinstance(value, dict)}


def _json_value(value: Any) -> Any:
    """A JSON value: numpy and torch scalars become numbers, a non-finite number becomes null."""
    number = value.item() if hasattr(value, "item") else value
    return None if isinstance(number, float) and not math.isfinite(number) else number
