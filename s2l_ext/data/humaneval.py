"""HumanEval JSONL to verl parquet, with the tests as the ground truth of a code reward.

Two row forms are read: OpenAI's ``{task_id, prompt, canonical_solution, test, entry_point}`` (Chen et al. 2021) and
``{id, problem, solution, test, entry_point}``.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from s2l_ext.data import converting
from s2l_ext.data.command import command_of
from s2l_ext.data.converting import Converter, DuplicateCheck, Output, Records, Row, as_text, option
from s2l_ext.errors import DataError

INSTRUCTION = (
    "Complete the Python function below. Answer with one fenced Python code block (```python ... ```) that holds the "
    "whole program: the imports, the function under its name and signature, and all helpers that it calls."
)


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


@dataclass(frozen=True)
class HumanEval(Converter):
    """Tasks with their ids. The canonical trace is the gold program, no reasoning: guidance from it gives away code of
    the solution."""

    command = "humaneval"
    ability = "code"
    data_source: str = option("humaneval", "verl's data_source")
    name: str | None = option("test", "split and file name")
    drop_repeats: bool = converting.drop_repeats_option()
    trace: str = option(
        "none", "canonical: the gold program as trace; it is the solution, not reasoning", choices=("none", "canonical")
    )
    instruction: str = option(INSTRUCTION, "text before the function to complete")

    def rows(self, records: Records, out: Output) -> Iterator[Row]:
        seen, split = DuplicateCheck(self.drop_repeats), str(self.name)
        for _, where, record in records:
            task = _read_task(record, where, self.trace == "canonical")
            index = converting.index_of(f"{task.id}\n{task.prompt}")
            repeated = seen.repeat(index, where, task.ground_truth, f"{where}: task '{task.id}' is also at {{first}}.")
            if repeated:
                out.drop_row(split, repeated)
                continue
            seen.require_new_id(task.id, where, "task")
            code = f"```python\n{task.prompt.rstrip()}\n```"
            prompt = converting.user_prompt(f"{self.instruction}\n\n{code}" if self.instruction else code, "")
            trace = task.trace if self.trace == "canonical" else ""
            yield Row(split, task.id, converting.index_of(task.prompt), prompt, task.ground_truth, trace)
        seen.refuse_repeats()


def _read_task(record: dict[str, Any], where: str, need_solution: bool) -> Task:
    original = "task_id" in record
    keys = ("task_id", "prompt", "canonical_solution") if original else ("id", "problem", "solution")
    identity = as_text(record, keys[0], where)
    prompt, test = (_read_code(record, key, where) for key in (keys[1], "test"))
    solution = _read_code(record, keys[2], where) if need_solution else ""
    task = Task(identity, prompt, test, as_text(record, "entry_point", where), solution)
    _check(task, where, keys)
    return task


def _read_code(record: dict[str, Any], key: str, where: str) -> str:
    """The text as it is: blanks at its ends belong to a program."""
    as_text(record, key, where)
    if not isinstance(record[key], str):
        raise DataError(f"{where}: column '{key}' is {record[key]!r}, not Python.")
    return record[key]


def _check(task: Task, where: str, keys: tuple[str, str, str]) -> None:
    stub = task.prompt if task.solution else f"{task.prompt.rstrip()}\n    pass\n"
    program = _parse(stub + task.solution, where, keys[2] if task.solution else keys[1])
    if task.entry_point not in _function_names(program):
        raise DataError(
            f"{where}: column 'entry_point' is '{task.entry_point}', which column '{keys[1]}' does not define. "
            f"Functions: {', '.join(_function_names(program)) or 'none'}."
        )
    if "check" not in _function_names(_parse(task.test, where, "test")):
        raise DataError(f"{where}: column 'test' does not define check(candidate), which the reward calls.")


def _parse(code: str, where: str, column: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: column '{column}' is not Python ({error}).") from error


def _function_names(program: ast.Module) -> list[str]:
    return [node.name for node in program.body if isinstance(node, ast.FunctionDef)]


add_arguments, main = command_of(HumanEval)
