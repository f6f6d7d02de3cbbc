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
from s2l_ext.data.converting import Converter, Output, Records, Row, as_text, option
from s2l_ext.errors import DataError

INSTRUCTION = (
    "Complete the Python function below. Answer with one fenced Python code block (```python ... ```) that holds the "
    "whole program: the imports, the function under its name and signature, and all helpers that it calls."
)


@dataclass(frozen=True)
class HumanEval(Converter):
    """Tasks with their ids. The canonical trace is the gold program, no reasoning: guidance from it gives away code of
    the solution."""

    command = "humaneval"
    ability = "code"
    data_source: str = option("humaneval", "verl's data_source")
    name: str | None = option("test", "split and file name")
    drop_repeats: bool = option(False, converting.DROP_REPEATS)
    trace: str = option(
        "none", "canonical: the gold program as trace; it is the solution, not reasoning", choices=("none", "canonical")
    )
    instruction: str = option(INSTRUCTION, "text before the function to complete")

    def rows(self, records: Records, out: Output) -> Iterator[Row]:
        for _, where, record in records:
            row = self._read_row(record, where)
            index = converting.index_of(f"{row.id}\n{row.prompt[0]['content']}")
            message = f"{where}: task '{row.id}' is also at {{first}}."
            if not out.drops_repeat(row.split, index, where, row.answer, message):
                out.require_new_id(row.id, where, "task")
                yield row

    def _read_row(self, record: dict[str, Any], where: str) -> Row:
        """Of a trace the last line ends, so that nothing that follows can break the closing fence."""
        original = "task_id" in record
        keys = ("task_id", "prompt", "canonical_solution") if original else ("id", "problem", "solution")
        identity, name = as_text(record, keys[0], where), as_text(record, "entry_point", where)
        stub, test = (_read_code(record, key, where) for key in (keys[1], "test"))
        solution = _read_code(record, keys[2], where) if self.trace == "canonical" else ""
        _check(stub, solution, test, name, where, keys)
        code = f"```python\n{stub.rstrip()}\n```"
        prompt = converting.user_prompt(f"{self.instruction}\n\n{code}" if self.instruction else code, "")
        truth = {"style": "humaneval", "prompt": stub, "test": test, "entry_point": name}
        program, trace = f"{stub}{solution}".strip(), ""
        if self.trace == "canonical":
            trace = f"<think>\nA program that does this:\n\n{program}\n</think>\n\n```python\n{program}\n```\n"
        return Row(str(self.name), identity, converting.index_of(stub), prompt, json.dumps(truth), trace)


def _read_code(record: dict[str, Any], key: str, where: str) -> str:
    """The text as it is: blanks at its ends belong to a program."""
    as_text(record, key, where)
    if not isinstance(record[key], str):
        raise DataError(f"{where}: column '{key}' is {record[key]!r}, not Python.")
    return record[key]


def _check(stub: str, solution: str, test: str, name: str, where: str, keys: tuple[str, str, str]) -> None:
    program = f"{stub}{solution}" if solution else f"{stub.rstrip()}\n    pass\n"
    defined = _function_names(program, where, keys[2] if solution else keys[1])
    if name not in defined:
        raise DataError(
            f"{where}: column 'entry_point' is '{name}', which column '{keys[1]}' does not define. "
            f"Functions: {', '.join(defined) or 'none'}."
        )
    if "check" not in _function_names(test, where, "test"):
        raise DataError(f"{where}: column 'test' does not define check(candidate), which the reward calls.")


def _function_names(code: str, where: str, column: str) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    except (SyntaxError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: column '{column}' is not Python ({error}).") from error


add_arguments, main = command_of(HumanEval)
