"""GSM8K, or any JSONL of its form, to verl parquet with stable ids, the answer and the solution trace.

Two row forms are read: ``{id?, problem, answer, solution?, source?}``, and OpenAI's original
``{question, answer}`` whose answer ends in ``#### <final answer>`` (Cobbe et al. 2021).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from s2l_ext.errors import DataError

INSTRUCTION = "Reason step by step, then give the final answer inside \\boxed{}."
SPLITS = ("train", "test", "validation", "val")
CALCULATOR = re.compile(r"<<[^<>]*>>")
FINAL_ANSWER = re.compile(r"^####[ \t]*(.*?)\s*$", re.MULTILINE)
THOUSANDS = re.compile(r"[-+]?\$?\d{1,3}(,\d{3})+(\.\d+)?")
SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct([("index", pa.int64()), ("id", pa.string()), ("split", pa.string()), ("trace", pa.string())]),
        ),
    ]
)


@dataclass(frozen=True)
class Problem:
    """One row of an input file; ``where`` is its file and line, ``trace`` is empty without a solution."""

    where: str
    id: str
    split: str
    problem: str
    answer: str
    trace: str

    @property
    def index(self) -> int:
        """48 bits of the problem's hash: the same in every file order, exact in a float64."""
        return int(_digest(self.problem)[:12], 16)


@dataclass(frozen=True)
class Written:
    """One parquet file: where, which split, how many rows, and how many of them carry a trace."""

    path: str
    split: str
    rows: int
    with_trace: int


def convert(
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    limit: int | None = None,
    instruction: str = INSTRUCTION,
    name: str | None = None,
    data_source: str = "gsm8k",
    progress: bool = False,
) -> list[Written]:
    """Write ``<output>/<split>.parquet`` for every split found in the input. Nothing is written when a row is bad.

    Args:
        input: one or more ``.jsonl`` or ``.jsonl.gz`` files.
        output: folder, created if absent.
        limit: first rows of every input file only.
        instruction: sentence appended to every problem; empty for none.
        name: split and file name for all rows; otherwise each row's ``source`` or its file's name says it.
        data_source: verl's ``data_source`` of every row; validation metrics are reported under it.
        progress: show a progress bar on stderr.

    Raises:
        DataError: file, line and column of the first unusable row, a duplicate, or a problem that two splits share.
    """
    files = [Path(input)] if isinstance(input, str | Path) else [Path(path) for path in input]
    problems = [problem for path in files for problem in _read(path, limit, name, progress)]
    _refuse_duplicates(problems)
    splits = sorted({problem.split for problem in problems})
    output = Path(output)
    return [
        _write(output / f"{split}.parquet", [row for row in problems if row.split == split], instruction, data_source)
        for split in splits
    ]


def _read(path: Path, limit: int | None, name: str | None, progress: bool) -> list[Problem]:
    lines = tqdm(_lines(path), desc=path.name, unit=" rows", disable=not progress)
    problems: list[Problem] = []
    for number, line in lines:
        if limit is not None and len(problems) >= limit:
            break
        problems.append(_problem(_record(line, f"{path}:{number}"), f"{path}:{number}", path, name))
    if not problems:
        raise DataError(f"{path}: no rows. Expected one JSON object a line with 'problem' and 'answer'.")
    return problems


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered (from 1) non-blank lines of a plain or gzipped file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 JSONL ({error}).") from error


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno}).") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}.")
    return record


def _problem(record: dict[str, Any], where: str, path: Path, name: str | None) -> Problem:
    original = "problem" not in record and "question" in record
    text = _field(record, "question" if original else "problem", where)
    answer = _field(record, "answer", where)
    solution = answer if original else str(record.get("solution") or "")
    if original:
        answer = _final_answer(answer, where)
    split = name or _split(str(record.get("source") or ""), path, where)
    identity = str(record.get("id") or f"{split}-{_digest(text)[:16]}")
    return Problem(where, identity, split, text, _without_thousands(answer), trace_of(solution))


def _field(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    problem = "is missing" if key not in record else f"is {value!r}, not text"
    raise DataError(f"{where}: column '{key}' {problem}. Found: {', '.join(record) or 'none'}.")


def _final_answer(solution: str, where: str) -> str:
    found = FINAL_ANSWER.findall(solution)
    if not found or not found[-1]:
        raise DataError(f"{where}: column 'answer' has no final line '#### <answer>'.")
    return str(found[-1])


def _without_thousands(answer: str) -> str:
    return answer.replace(",", "") if THOUSANDS.fullmatch(answer) else answer


def trace_of(solution: str) -> str:
    """The solution without ``<<48/2=24>>`` annotations and without its ``#### 24`` line."""
    return FINAL_ANSWER.sub("", CALCULATOR.sub("", solution)).strip()


def _split(source: str, path: Path, where: str) -> str:
    for text in (source, path.name):
        words = re.split(r"[^a-z]+", text.lower())
        for split in SPLITS:
            if split in words:
                return "val" if split == "validation" else split
    raise DataError(
        f"{where}: neither column 'source' ({source!r}) nor the file name says train, test or val. Pass --name."
    )


def _digest(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).hexdigest()


def _refuse_duplicates(problems: list[Problem]) -> None:
    ids: dict[str, Problem] = {}
    texts: dict[int, Problem] = {}
    shared: list[tuple[Problem, Problem]] = []
    for problem in problems:
        first = texts.setdefault(problem.index, problem)
        if first.split != problem.split:
            shared.append((first, problem))
        elif first is not problem:
            raise DataError(f"{problem.where}: the problem of '{problem.id}' is also at {first.where} ('{first.id}').")
        if ids.setdefault(problem.id, problem) is not problem:
            raise DataError(
                f"{problem.where}: id '{problem.id}' is also at {ids[problem.id].where}. Ids must be unique."
            )
    if shared:
        a, b = shared[0]
        raise DataError(
            f"{len(shared)} problems are in two splits, first: {a.where} ({a.split}) and {b.where} ({b.split})."
            " Held-out accuracy would mean nothing; remove them from one file."
        )


def _write(path: Path, problems: list[Problem], instruction: str, data_source: str) -> Written:
    table = pa.Table.from_pylist([_row(problem, instruction, data_source) for problem in problems], schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        pq.write_table(table, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return Written(str(path), problems[0].split, len(problems), sum(bool(problem.trace) for problem in problems))


def _row(problem: Problem, instruction: str, data_source: str) -> dict[str, Any]:
    content = f"{problem.problem}\n{instruction}" if instruction else problem.problem
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": content}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {"index": problem.index, "id": problem.id, "split": problem.split, "trace": problem.trace},
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l data gsm8k``."""
    parser.add_argument(
        "--input", type=Path, action="append", required=True, metavar="FILE", help=".jsonl or .jsonl.gz; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for <split>.parquet")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="first N rows of every input file")
    parser.add_argument("--instruction", default=INSTRUCTION, help="sentence appended to every problem")
    parser.add_argument("--name", default=None, help="split and file name for all rows (default: from the rows)")
    parser.add_argument("--data-source", default="gsm8k", help="verl's data_source (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def main(args: argparse.Namespace) -> int:
    """``s2l data gsm8k``. Returns the exit status; unusable input raises DataError."""
    if args.limit is not None and args.limit < 1:
        raise DataError(f"--limit {args.limit} must be at least 1.")
    written = convert(
        args.input, args.out, args.limit, args.instruction, args.name, args.data_source, progress=not args.json
    )
    if args.json:
        print(json.dumps({"files": [asdict(file) for file in written]}))
        return 0
    for file in written:
        print(f"{file.path}: {file.rows} rows, {file.with_trace} with a solution trace")
    return 0
