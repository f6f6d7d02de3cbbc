"""GSM8K, or any JSONL of its form, to verl parquet with stable ids, the answer and the solution trace.

Two row forms are read: ``{id?, problem, answer, solution?, source?}``, and OpenAI's original
``{question, answer}`` whose answer ends in ``#### <final answer>`` (Cobbe et al. 2021).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from s2l_ext.data import converting, traces
from s2l_ext.data.command import command_of
from s2l_ext.data.converting import Converter, Output, Records, Row, as_answer, as_text, option
from s2l_ext.data.values import clean_text, refuse_list_as_text, shown
from s2l_ext.errors import DataError
from s2l_ext.rewards.math import grade

INSTRUCTION = "Reason step by step, then give the final answer inside \\boxed{}."
NOT_REACHED = "answer not in the reasoning"
SPLITS = ("train", "test", "validation", "val")
CALCULATOR = re.compile(r"<<[^<>]*>>")
FINAL_ANSWER = re.compile(r"^####[ \t]*(.*?)\s*$", re.MULTILINE)
THOUSANDS = re.compile(r"[-+]?\$?\d{1,3}(,\d{3})+(\.\d+)?")


@dataclass(frozen=True)
class Gsm8k(Converter):
    """A file for every split found in the input, which ``name``, each row's ``source`` or its file's name says. A
    problem that two splits share is refused."""

    command = "gsm8k"
    data_source: str = option("gsm8k", "verl's data_source")
    name: str | None = option(None, "split and file name for all rows (default: from the rows)")
    instruction: str = option(INSTRUCTION, "sentence appended to every problem")
    without_trace: str = option("keep", **converting.WITHOUT_TRACE)
    drop_repeats: bool = option(False, converting.DROP_REPEATS)

    def rows(self, records: Records, out: Output) -> Iterator[Row]:
        shared = list[str]()
        first: dict[int, tuple[str, str, str]] = {}
        for path, where, record in records:
            row = self._read_row(record, where, path)
            place, split, name = first.setdefault(row.index, (where, row.split, row.id))
            if split != row.split:
                shared.append(f"{place} ({split}) and {where} ({row.split})")
                continue
            message = f"{where}: the problem of '{row.id}' is also at {{first}} ('{name}')."
            if out.drops_repeat(row.split, row.index, where, row.answer, message):
                continue
            out.require_new_id(row.id, where)
            fault = trace_fault(row.trace, row.answer)
            if fault:
                out.drop_trace(row.split, fault)
            if fault and self.without_trace == "drop":
                out.drop_row(row.split, converting.NO_TRACE)
            else:
                yield replace(row, trace="" if fault else trace_of(row.trace))
        if shared:
            raise DataError(
                f"{len(shared)} problems are in two splits, first: {shared[0]}. Held-out accuracy would mean nothing; "
                "remove them from one file."
            )

    def _read_row(self, record: dict[str, Any], where: str, path: Path) -> Row:
        """The row, with its whole solution as trace."""
        original = "problem" not in record and "question" in record
        name = "question" if original else "problem"
        text = as_text(record, name, where)
        solution = as_text(record, "answer", where) if original else _read_solution(record, where)
        answer = _final_answer(solution, where) if original else as_answer(record, "answer", where)
        refuse_list_as_text(text, where, f"column '{name}'")
        split = self.name or _find_split(str(record.get("source") or ""), path, where)
        given = record.get("id") not in (None, "")
        identity = as_text(record, "id", where) if given else f"{split}-{converting.digest(text)[:16]}"
        prompt = converting.user_prompt(text, self.instruction)
        return Row(split, identity, converting.index_of(text), prompt, _without_thousands(answer), solution)


def _read_solution(record: dict[str, Any], where: str) -> str:
    solution = record.get("solution")
    if not isinstance(solution, str | None):
        raise DataError(f"{where}: column 'solution' is {shown(solution)}. A solution is text; leave it out for none.")
    refuse_list_as_text(solution or "", where, "column 'solution'")
    return clean_text(solution or "", where, "column 'solution'")


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


def trace_fault(solution: str, answer: str) -> str | None:
    """Why a solution cannot be a trace; None if it can.

    Its ``####`` line is judged if it has one, else its end; and the answer must also occur in the text without
    that line: some of GSM8K's solutions work out one number and then give another.
    """
    text = FINAL_ANSWER.sub(lambda line: f"#### {_without_thousands(line[1])}", CALCULATOR.sub("", solution))
    reason = traces.fault(traces.normalise(text), answer, marked=False)
    if reason:
        return reason
    trace = trace_of(solution)
    if not trace:
        return traces.ANSWER_ONLY
    comes_up = traces.answer_start(trace, answer) is not None or grade(traces.conclusion_of(trace), answer)
    return None if comes_up else NOT_REACHED


def _find_split(source: str, path: Path, where: str) -> str:
    for text in (source, path.name):
        words = re.split(r"[^a-z]+", text.lower())
        for split in SPLITS:
            if split in words:
                return "val" if split == "validation" else split
    raise DataError(
        f"{where}: neither column 'source' ({shown(source)}) nor the file name says train, test or val. Pass --name."
    )


add_arguments, main = command_of(Gsm8k)
