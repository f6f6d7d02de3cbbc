"""What a run's folder says: metrics by step, and accuracies on the same held-out problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from s2l_ext.errors import DataError
from s2l_ext.evaluation.intervals import Interval, paired_interval, verdict
from s2l_ext.utils import json_text

ROLLOUTS_PER_GROUP = "s2l/explorer/rollouts_per_group"
COLUMNS = ["prompt", "accuracy", "output", "truth", "source"]

Metrics = list[tuple[int, dict[str, Any]]]
Parsed = TypeVar("Parsed")


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


# ---- metrics ------------------------------------------------------------------------------------------------------


def read_metrics(path: Path) -> Metrics:
    """``(step, metrics)`` in file order. A torn last line is left out.

    Raises:
        DataError: the file is missing, or a line before the last is not ``{"step": ..., "data": {...}}``.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. The run wrote no metrics; its log says why.")
    return read_json_lines(path, lambda record: (int(record["step"]), dict(record["data"])), "a metrics line")


def is_accuracy(key: str) -> bool:
    """Whether a metric is verl's validation accuracy ``val-core/<data source>/acc/mean@n``."""
    return key.startswith("val-core/") and "/acc/mean@" in key


def source_and_samples(key: str) -> tuple[str, str]:
    """``("toy", "1")`` from ``val-core/toy/acc/mean@1``."""
    source, samples = key.removeprefix("val-core/").split("/acc/mean@", 1)
    return source, samples


def set_name(key: str) -> str:
    """``toy`` from ``val-core/toy/acc/mean@1``, with the number of samples where it is not 1."""
    source, samples = source_and_samples(key)
    return source if samples == "1" else f"{source}, mean of {samples}"


def series(lines: Metrics, key: str) -> list[tuple[int, float]]:
    """``(step, value)`` of every line that has a number under ``key``, by step; the last line of a step wins."""
    found = {step: data[key] for step, data in lines if is_number(data.get(key))}
    return [(step, float(found[step])) for step in sorted(found)]


def joined(found: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, list[float]]]:
    """By step that all of several series have, their values."""
    by_step = [dict(one) for one in found]
    steps = sorted(set(by_step[0]).intersection(*by_step[1:])) if by_step else []
    return [(step, [values[step] for values in by_step]) for step in steps]


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# ---- validations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Of two accuracies; ``how`` is "paired", "independent" or "" without an interval, ``verdict`` as of
    :func:`s2l_ext.evaluation.intervals.verdict`, "" without one."""

    value: float
    ci95: Interval | None = None
    how: str = ""
    verdict: str = ""


def dump_files(folder: Path) -> list[Path]:
    """verl's ``<step>.jsonl`` files of a folder, by step; none where there is no folder."""
    return sorted((path for path in folder.glob("*.jsonl") if path.stem.isdigit()), key=lambda path: int(path.stem))


def read_validations(folders: list[Path]) -> dict[int, pd.DataFrame]:
    """verl's ``validation_data_dir``, one ``<step>.jsonl`` per validation: by step, from the first folder with any."""
    files = next((found for found in map(dump_files, folders) if found), [])
    return {int(path.stem): read_validation(path) for path in files}


def read_validation(path: Path) -> pd.DataFrame:
    """One dump, a row for each prompt text in the order of the texts: mean ``accuracy`` (0..1) of its samples, and of
    its first one ``output``, ``truth`` and ``source`` (None where the dump has no data source).

    Raises:
        DataError: it has no rows, or a line before the last without ``input`` and ``acc`` (or ``score``).
    """
    rows = read_json_lines(path, _read_problem, "a row of a validation dump")
    if not rows:
        raise DataError(f"{path}: the validation dump has no rows.")
    groups = pd.DataFrame(rows, columns=COLUMNS).astype({"source": object}).groupby("prompt")
    return groups.agg({"accuracy": "mean", "output": "first", "truth": "first", "source": "first"})


def _read_problem(row: dict[str, Any]) -> tuple[str, float, str, str, str | None]:
    accuracy = float(row["acc"] if row.get("acc") is not None else row["score"])
    texts = str(row.get("output", "")), str(row.get("gts", ""))
    return row["input"], accuracy, *texts, str(row["data_source"]) if row.get("data_source") else None


def paired(before: pd.DataFrame | None, after: pd.DataFrame | None) -> Difference | None:
    """Paired by prompt text, by 95 % bootstrap; None where a dump is missing or the problems differ."""
    if before is None or after is None or not before.index.equals(after.index):
        return None
    gaps = (after["accuracy"] - before["accuracy"]).to_numpy()
    interval = paired_interval(gaps)
    return Difference(float(gaps.mean()), interval, "paired", verdict(interval, int(np.count_nonzero(gaps))))
