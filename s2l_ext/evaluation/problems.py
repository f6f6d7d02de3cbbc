"""Problems to evaluate on: verl parquet, or a benchmark's own rows (JSON lines, CSV, parquet) with its definition."""

from __future__ import annotations

import csv
import gzip
import sys
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from s2l_ext.data import reading
from s2l_ext.data.checks import check_parquet
from s2l_ext.data.prompts import ONE_ID, prompt_id
from s2l_ext.errors import DataError
from s2l_ext.evaluation.benchmarks import GROUP_COLUMNS, Benchmark, Problem, groups_of

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
VERL_COLUMNS = {"prompt", "data_source", "reward_model"}


def read_problems(
    paths: Sequence[Path], benchmark: Benchmark | None = None, limit: int | None = None, drop_repeats: bool = False
) -> list[Problem]:
    """Problems of all files, in order; of each file the first ``limit``. ``benchmark`` is None for verl parquet, whose
    rows say themselves how they become problems. ``drop_repeats``: of rows with the same id, text and ground truth the
    first stays; else they are refused. Raises DataError."""
    first: dict[str, Problem] = {}
    for path in paths:
        require_known_kind(path)
        rows = _read_verl(path) if benchmark is None else _read_published(path, benchmark)
        found = list(islice(rows, limit))
        if not found:
            raise DataError(f"--data {path}: no rows.")
        for problem in found:
            other = first.setdefault(problem.id, problem)
            if other is not problem:
                _refuse_duplicate(other, problem, drop_repeats)
    return list(first.values())


def _refuse_duplicate(first: Problem, problem: Problem, drop: bool) -> None:
    place = f"{problem.where}: problem {problem.id} is also at {first.where}"
    if first.messages != problem.messages:
        raise DataError(f"{place}, {ONE_ID}")
    if first.ground_truth != problem.ground_truth:
        raise DataError(f"{place}, with another answer. Keep the row whose answer is right.")
    if not drop:
        raise DataError(f"{place}. Keep one row a problem, or pass --drop-repeats; more samples of it come from --n.")


def _read_verl(path: Path) -> Iterator[Problem]:
    if path.suffix != ".parquet":
        raise DataError(
            f"--data {path}: JSON lines and CSV need --benchmark NAME or FILE.yaml, which says how a row becomes a "
            "prompt; or convert the file with s2l data."
        )
    check_parquet(path)
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if "data_source" not in names:
            raise DataError(
                f"{path}: column 'data_source' is missing (it chooses the reward). Found: {', '.join(names)}."
            )
        wanted = [n for n in (*sorted(VERL_COLUMNS), "extra_info", "ability", *GROUP_COLUMNS) if n in names]
        number = 0
        for batch in file.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                yield _make_problem(row, f"{path}: row {number}")
                number += 1


def _make_problem(row: dict[str, Any], where: str) -> Problem:
    extra = row.get("extra_info") or {}
    truth = row["reward_model"]["ground_truth"]
    name, source, ability = prompt_id(row["prompt"], extra), str(row["data_source"]), str(row.get("ability") or "")
    groups = {**groups_of(extra), **groups_of(row)}
    return Problem(name, where, row["prompt"], source, truth, extra, ability.lower(), None, groups)


def _read_published(path: Path, benchmark: Benchmark) -> Iterator[Problem]:
    if path.suffix == ".parquet" and set(reading.parquet_columns(path)) >= VERL_COLUMNS:
        raise DataError(
            f"--data {path}: verl parquet has its own prompts, --benchmark {benchmark.data_source} cannot apply. Leave "
            "--benchmark out, or give the file as it was published."
        )
    rows = _read_csv(path) if path.suffix == ".csv" and not reading.is_parquet(path) else reading.read_rows(path)
    return (benchmark.problem(record, where) for where, record in rows)


def require_known_kind(path: Path) -> None:
    """Raise DataError unless the file is there, of a kind that is read, and so called."""
    reading.require_file(path, "--data")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"--data {path}: expected a file that ends in {', '.join(SUFFIXES)}.")


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)
    try:
        opener: Any = gzip.open if reading.kind_of(path) == reading.GZIP else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row:
                    raise DataError(f"{path}:{reader.line_num}: more fields than the first line has names.")
                yield f"{path}:{reader.line_num}", row
    except (csv.Error, OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 CSV ({error}).") from error
