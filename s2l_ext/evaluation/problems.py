"""Problems to evaluate on: verl parquet, or JSON lines with a benchmark's definition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from s2l_ext.data.checks import check_parquet
from s2l_ext.data.converting import read_jsonl
from s2l_ext.data.prompts import prompt_id
from s2l_ext.errors import DataError
from s2l_ext.evaluation.benchmarks import Benchmark

JSON_LINES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Problem:
    """One prompt with what its reward function needs; ``where`` is its file and row."""

    id: str
    where: str
    messages: list[dict[str, str]]
    data_source: str
    ground_truth: Any
    extra_info: dict[str, Any] = field(default_factory=dict)
    ability: str = ""
    reward: str | None = None


def read_problems(paths: Sequence[Path], benchmark: Benchmark | None = None, limit: int | None = None) -> list[Problem]:
    """Problems of all files, in order; of each file the first ``limit``.

    Raises:
        DataError: a file is missing, unreadable, empty or lacks a column, or two rows are one problem.
    """
    problems: list[Problem] = []
    first: dict[str, str] = {}
    for path in paths:
        if not path.is_file():
            raise DataError(f"--data {path}: no such file.")
        rows = _json_lines(path, benchmark) if path.name.endswith(JSON_LINES) else _parquet(path)
        found = list(islice(rows, limit))
        if not found:
            raise DataError(f"--data {path}: no rows.")
        for problem in found:
            _refuse_duplicate(first.setdefault(problem.id, problem.where), problem)
        problems += found
    return problems


def _refuse_duplicate(where: str, problem: Problem) -> None:
    if where != problem.where:
        raise DataError(
            f"{problem.where}: problem {problem.id} is also at {where}. Keep one row a problem; more samples of it "
            "come from --n."
        )


def _parquet(path: Path) -> Iterator[Problem]:
    check_parquet(path)
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if "data_source" not in names:
            raise DataError(
                f"{path}: column 'data_source' is missing (it chooses the reward). Found: {', '.join(names)}."
            )
        wanted = [n for n in ("prompt", "data_source", "reward_model", "extra_info", "ability") if n in names]
        number = 0
        for batch in file.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                yield _from_row(row, f"{path}: row {number}")
                number += 1


def _from_row(row: dict[str, Any], where: str) -> Problem:
    extra = row.get("extra_info") or {}
    truth = row["reward_model"]["ground_truth"]
    name, source, ability = prompt_id(row["prompt"], extra), str(row["data_source"]), str(row.get("ability") or "")
    return Problem(name, where, row["prompt"], source, truth, extra, ability.lower())


def _json_lines(path: Path, benchmark: Benchmark | None) -> Iterator[Problem]:
    if benchmark is None:
        raise DataError(
            f"--data {path}: JSON lines need --benchmark NAME or FILE.yaml, which says how a row becomes a prompt; or "
            "convert the file with s2l data."
        )
    for where, record in read_jsonl(path):
        row = benchmark.renamed(record)
        messages = benchmark.messages(row, where)
        extra = {"id": str(row[benchmark.id])} if benchmark.id and row.get(benchmark.id) is not None else {}
        truth = benchmark.truth(row, where)
        name, source = prompt_id(messages, extra), benchmark.data_source
        yield Problem(name, where, messages, source, truth, extra, "", benchmark.reward)
