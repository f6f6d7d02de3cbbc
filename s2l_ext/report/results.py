"""What a run's folder says: metrics by step, and accuracy before and after on the same held-out problems."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from s2l_ext.errors import DataError
from s2l_ext.evaluation.intervals import paired_interval, verdict
from s2l_ext.utils import json_text

SLOTS = "s2l/explorer/rollouts_per_group"

Metrics = list[tuple[int, dict[str, Any]]]
Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Validation:
    """One dump of verl's validation: mean accuracy (0..1) and a sample output for each prompt text, and its data
    source where the dump has one."""

    step: int
    accuracy: dict[str, float]
    output: dict[str, str]
    truth: dict[str, str]
    source: dict[str, str] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.accuracy.values())))


@dataclass(frozen=True)
class Gain:
    """Accuracy of the same problems before and after, and the 95 % interval of the difference of the means."""

    before: float
    after: float
    ci95: tuple[float, float]
    n: int
    differing: int
    """Problems whose accuracy changed."""

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def is_clear(self) -> bool:
        """The interval excludes 0, and enough problems differ."""
        return self.verdict == "clear"

    @property
    def verdict(self) -> str:
        """Of :func:`s2l_ext.evaluation.intervals.verdict`."""
        return verdict(self.ci95, self.differing)


def read_metrics(path: Path) -> Metrics:
    """``(step, metrics)`` in file order. A torn last line is left out.

    Raises:
        DataError: the file is missing, or a line before the last is not ``{"step": ..., "data": {...}}``.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. The run wrote no metrics; its log says why.")
    return read_json_lines(path, lambda record: (int(record["step"]), dict(record["data"])), "a metrics line")


def read_json_lines(path: Path, parse: Callable[[Any], Parsed], what: str) -> list[Parsed]:
    """``parse`` of every line. The last line may be torn, by a run that still writes or was killed; it is left out.

    Raises:
        DataError: a line before the last is not JSON, or ``parse`` refuses it.
    """
    parsed: list[Parsed] = []
    broken: tuple[int, Exception] | None = None
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if broken:
                raise DataError(
                    f"{path}:{broken[0]}: not {what} ({broken[1]}). Remove that line, or restore the file from a copy."
                ) from broken[1]
            try:
                parsed.append(parse(json_text.loads(line)))
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
                broken = number, error
    return parsed


def is_accuracy(key: str) -> bool:
    """Whether a metric is verl's validation accuracy ``val-core/<data source>/acc/mean@n``."""
    return key.startswith("val-core/") and "/acc/mean@" in key


def series(lines: Metrics, key: str) -> list[tuple[int, float]]:
    """``(step, value)`` of every line that has a number under ``key``, by step; the last line of a step wins."""
    found = {step: data[key] for step, data in lines if _is_number(data.get(key))}
    return [(step, float(found[step])) for step in sorted(found)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def read_validations(folder: Path) -> list[Validation]:
    """verl's ``validation_data_dir``: one ``<step>.jsonl`` per validation, by step.

    Raises:
        DataError: fewer than two dumps, or a line without ``input`` and ``acc`` (or ``score``).
    """
    paths = dump_files(folder)
    if len(paths) < 2:
        raise DataError(
            f"{folder}: {len(paths)} validation dumps, two are needed to compare. "
            "Set trainer.val_before_train=true, and trainer.test_freq within the number of steps."
        )
    return [read_validation(path) for path in paths]


def dump_files(folder: Path) -> list[Path]:
    """verl's ``<step>.jsonl`` files of a folder, by step; none where there is no folder."""
    return sorted((path for path in folder.glob("*.jsonl") if path.stem.isdigit()), key=lambda path: int(path.stem))


def read_validation(path: Path) -> Validation:
    """One dump. Raises DataError: it has no rows, or a line without ``input`` and ``acc`` (or ``score``)."""
    values: dict[str, list[float]] = defaultdict(list)
    output: dict[str, str] = {}
    truth: dict[str, str] = {}
    source: dict[str, str] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json_text.loads(line)
                accuracy = row["acc"] if row.get("acc") is not None else row["score"]
                values[row["input"]].append(float(accuracy))
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
                raise DataError(f"{path}:{number}: not a row of a validation dump ({error!r}).") from error
            output.setdefault(row["input"], str(row.get("output", "")))
            truth.setdefault(row["input"], str(row.get("gts", "")))
            if row.get("data_source"):
                source.setdefault(row["input"], str(row["data_source"]))
    if not values:
        raise DataError(f"{path}: the validation dump has no rows.")
    means = {prompt: float(np.mean(scores)) for prompt, scores in values.items()}
    return Validation(int(path.stem), means, output, truth, source)


def compare(before: Validation, after: Validation, seed: int = 0) -> Gain:
    """Paired by prompt text. Raises DataError when the two did not see the same problems."""
    if before.accuracy.keys() != after.accuracy.keys():
        shared = len(before.accuracy.keys() & after.accuracy.keys())
        raise DataError(
            f"validation at step {before.step} has {len(before.accuracy)} problems, at step {after.step} "
            f"{len(after.accuracy)}, and {shared} are in both. A paired comparison needs the same problems."
        )
    prompts = sorted(before.accuracy)
    a = np.array([before.accuracy[prompt] for prompt in prompts])
    b = np.array([after.accuracy[prompt] for prompt in prompts])
    interval, differing = paired_interval(b - a, seed), int(np.count_nonzero(b - a))
    return Gain(float(a.mean()), float(b.mean()), interval, len(prompts), differing)
