"""HumanEval JSONL to verl parquet, with the tests as the ground truth of a code reward.

Two row forms are read: OpenAI's ``{task_id, prompt, canonical_solution, test, entry_point}`` (Chen et al. 2021) and
``{id, problem, solution, test, entry_point}``.
"""

from __future__ import annotations

import argparse
import ast
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2l_ext.data import arguments, converting, reading
from s2l_ext.data.converting import Output, Repeats, Row, Source, Written, as_text
from s2l_ext.errors import DataError

INSTRUCTION = (
    "Complete the Python function below. Answer with one fenced Python code block (```python ... ```) that holds the "
    "whole program: the imports, the function under its name and signature, and all helpers that it calls."
)
TRACES = ("none", "canonical")


@dataclass(frozen=True)
class Task:
    """One programming task; ``prompt`` is imports, signature and docstring, ``solution`` the body or empty."""

    id: str
    prompt: str
    test: str
    entry_point: str
    solution: str

    @property
    def ground_truth(self) -> str:
        """JSON that the code reward reads."""
        return json.dumps(
            {"style": "humaneval", "prompt": self.prompt, "test": self.test, "entry_point": self.entry_point}
        )

    @property
    def trace(self) -> str:
        """The gold program as if it had been thought up, then as the answer. The last line ends, so that nothing that
        follows can break the closing fence."""
        program = f"{self.prompt}{self.solution}".strip()
        return f"<think>\nA program that does this:\n\n{program}\n</think>\n\n```python\n{program}\n```\n"


def convert(
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    trace: str = "none",
    limit: int | None = None,
    instruction: str = INSTRUCTION,
    name: str = "test",
    data_source: str = "humaneval",
    overwrite: bool = False,
    progress: bool = False,
    drop_repeats: bool = False,
) -> list[Written]:
    """Write ``<output>/<name>.parquet`` with the task's id as ``extra_info.id``. Nothing is written when a row is bad.

    Args:
        trace: ``canonical`` puts the gold program in ``extra_info.trace``. It is no reasoning trace; guidance from it
            hands over code of the solution.
        limit: first rows of every input file only.
        drop_repeats: keep the first row of a task that comes again.

    Raises:
        DataError: file, line, column and reason of the first unusable row, or an existing file that holds other data.
    """
    if trace not in TRACES:
        raise DataError(f"trace={trace!r}: choose one of {', '.join(TRACES)}.")
    files = converting.paths_of(input)
    seen: dict[str, str] = {}
    repeats = Repeats(drop_repeats)
    with Output(output, Source("humaneval", data_source, files, ability="code"), overwrite) as out:
        out.expect(name)
        for path in files:
            for where, record in reading.read_rows(path, None, limit, progress):
                task = _task(record, where, trace == "canonical")
                message = f"{where}: task '{task.id}' is also at {{first}}."
                index = converting.index_of(f"{task.id}\n{task.prompt}")
                repeated = repeats.reason(index, where, task.ground_truth, message)
                if repeated:
                    out.drop_row(name, repeated)
                    continue
                first = seen.setdefault(task.id, where)
                if first != where:
                    raise DataError(f"{where}: task '{task.id}' is also at {first}. Ids must be unique.")
                out.add(_row(task, name, instruction, trace == "canonical"))
        repeats.refuse()
    return out.files


def _task(record: dict[str, Any], where: str, need_solution: bool) -> Task:
    original = "task_id" in record
    keys = ("task_id", "prompt", "canonical_solution") if original else ("id", "problem", "solution")
    identity = as_text(record, keys[0], where)
    prompt, test = (_code(record, key, where) for key in (keys[1], "test"))
    solution = _code(record, keys[2], where) if need_solution else ""
    task = Task(identity, prompt, test, as_text(record, "entry_point", where), solution)
    _check(task, where, keys)
    return task


def _code(record: dict[str, Any], key: str, where: str) -> str:
    """The text as it is: blanks at its ends belong to a program."""
    as_text(record, key, where)
    if not isinstance(record[key], str):
        raise DataError(f"{where}: column '{key}' is {record[key]!r}, not Python.")
    return record[key]


def _check(task: Task, where: str, keys: tuple[str, str, str]) -> None:
    stub = task.prompt if task.solution else f"{task.prompt.rstrip()}\n    pass\n"
    program = _parse(stub + task.solution, where, keys[2] if task.solution else keys[1])
    if task.entry_point not in _functions(program):
        raise DataError(
            f"{where}: column 'entry_point' is '{task.entry_point}', which column '{keys[1]}' does not define. "
            f"Functions: {', '.join(_functions(program)) or 'none'}."
        )
    if "check" not in _functions(_parse(task.test, where, "test")):
        raise DataError(f"{where}: column 'test' does not define check(candidate), which the reward calls.")


def _parse(code: str, where: str, column: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: column '{column}' is not Python ({error}).") from error


def _functions(program: ast.Module) -> list[str]:
    return [node.name for node in program.body if isinstance(node, ast.FunctionDef)]


def _row(task: Task, name: str, instruction: str, with_trace: bool) -> Row:
    code = f"```python\n{task.prompt.rstrip()}\n```"
    content = f"{instruction}\n\n{code}" if instruction else code
    trace = task.trace if with_trace else ""
    index = converting.index_of(task.prompt)
    return Row(name, task.id, index, [{"role": "user", "content": content}], task.ground_truth, trace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l data humaneval``."""
    arguments.add_common_arguments(parser, arguments.KINDS)
    arguments.add_drop_repeats(parser)
    parser.add_argument(
        "--trace",
        choices=TRACES,
        default="none",
        help="canonical: the gold program as trace; it is the solution, not reasoning (default: %(default)s)",
    )
    parser.add_argument("--instruction", default=INSTRUCTION, help="text before the function to complete")
    parser.add_argument("--name", default="test", help="split and file name (default: %(default)s)")
    parser.add_argument("--data-source", default="humaneval", help="verl's data_source (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """``s2l data humaneval``. Returns the exit status; unusable input raises DataError."""
    settings = {"trace": args.trace, "instruction": args.instruction, "name": args.name}
    return arguments.run(args, convert, mathematical=False, drop_repeats=args.drop_repeats, **settings)
