"""GSM8K, or any JSONL of its form, to verl parquet with stable ids, the answer and the solution trace.

Two row forms are read: ``{id?, problem, answer, solution?, source?}``, and OpenAI's original
``{question, answer}`` whose answer ends in ``#### <final answer>`` (Cobbe et al. 2021).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2l_ext.data import arguments, converting, reading, traces
from s2l_ext.data.converting import Output, Repeats, Row, Source, Written, as_answer, as_text
from s2l_ext.data.values import clean_text, refuse_list_as_text, shown
from s2l_ext.errors import DataError

INSTRUCTION = "Reason step by step, then give the final answer inside \\boxed{}."
NOT_REACHED = "answer not in the reasoning"
SPLITS = ("train", "test", "validation", "val")
CALCULATOR = re.compile(r"<<[^<>]*>>")
FINAL_ANSWER = re.compile(r"^####[ \t]*(.*?)\s*$", re.MULTILINE)
THOUSANDS = re.compile(r"[-+]?\$?\d{1,3}(,\d{3})+(\.\d+)?")


@dataclass(frozen=True)
class Problem:
    """One row of an input file; ``where`` is its file and line, ``solution`` is empty when there is none."""

    where: str
    id: str
    split: str
    problem: str
    answer: str
    solution: str

    @property
    def index(self) -> int:
        return converting.index_of(self.problem)


def convert(
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    limit: int | None = None,
    instruction: str = INSTRUCTION,
    name: str | None = None,
    data_source: str = "gsm8k",
    progress: bool = False,
    keep_without_trace: bool = True,
    overwrite: bool = False,
    drop_repeats: bool = False,
) -> list[Written]:
    """Write ``<output>/<split>.parquet`` for every split found in the input. Nothing is written when a row is bad.

    Args:
        input: one or more files of JSON lines (gzipped or not) or parquet.
        output: folder, created if absent.
        limit: first rows of every input file only.
        instruction: sentence appended to every problem; empty for none.
        name: split and file name for all rows; otherwise each row's ``source`` or its file's name says it.
        data_source: verl's ``data_source`` of every row; validation metrics are reported under it.
        progress: show a progress bar on stderr.
        keep_without_trace: keep rows without a usable solution, with an empty trace.
        overwrite: replace files that hold other data.
        drop_repeats: keep the first row of a problem that comes again in its split.

    Raises:
        DataError: file, line and column of the first unusable row, a duplicate, a problem that two splits share, or an
            existing file that holds other data.
    """
    files = converting.paths_of(input)
    seen = _Seen(Repeats(drop_repeats))
    with Output(output, Source("gsm8k", data_source, files), overwrite) as out:
        for path in files:
            for where, record in reading.read_rows(path, None, limit, progress):
                problem = _problem(record, where, path, name)
                repeated = seen.add(problem)
                if repeated:
                    out.drop_row(problem.split, repeated)
                else:
                    _put(out, problem, instruction, keep_without_trace)
        seen.refuse_shared()
        seen.repeats.refuse()
    return out.files


def _problem(record: dict[str, Any], where: str, path: Path, name: str | None) -> Problem:
    original = "problem" not in record and "question" in record
    text = as_text(record, "question" if original else "problem", where)
    solution = as_text(record, "answer", where) if original else _solution(record, where)
    answer = _final_answer(solution, where) if original else as_answer(record, "answer", where)
    refuse_list_as_text(text, where, f"column '{'question' if original else 'problem'}'")
    split = name or _split(str(record.get("source") or ""), path, where)
    given = record.get("id") not in (None, "")
    identity = as_text(record, "id", where) if given else f"{split}-{converting.digest(text)[:16]}"
    return Problem(where, identity, split, text, _without_thousands(answer), solution)


def _solution(record: dict[str, Any], where: str) -> str:
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

    Its ``####`` line is judged if it has one, else its end; and the answer must also come up in what is left without
    that line: some of GSM8K's solutions work out one number and then give another.
    """
    text = FINAL_ANSWER.sub(lambda line: f"#### {_without_thousands(line[1])}", CALCULATOR.sub("", solution))
    reason = traces.fault(traces.normalise(text), answer, marked=False)
    if reason:
        return reason
    trace = trace_of(solution)
    if not trace:
        return traces.ANSWER_ONLY
    comes_up = traces.answer_start(trace, answer) is not None or traces.states_answer(trace, answer)
    return None if comes_up else NOT_REACHED


def _split(source: str, path: Path, where: str) -> str:
    for text in (source, path.name):
        words = re.split(r"[^a-z]+", text.lower())
        for split in SPLITS:
            if split in words:
                return "val" if split == "validation" else split
    raise DataError(
        f"{where}: neither column 'source' ({shown(source)}) nor the file name says train, test or val. Pass --name."
    )


@dataclass
class _Seen:
    """Where each id and each problem was first: all that is kept of the rows."""

    repeats: Repeats
    ids: dict[str, str] = field(default_factory=dict)
    texts: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)

    def add(self, problem: Problem) -> str | None:
        """Why the row is left out, if it repeats another of its split. Raises DataError for an id twice."""
        here = (problem.where, problem.split, problem.id)
        where, split, name = self.texts.setdefault(problem.index, here)
        if split != problem.split:
            self.shared.append(f"{where} ({split}) and {problem.where} ({problem.split})")
            return None
        message = f"{problem.where}: the problem of '{problem.id}' is also at {{first}} ('{name}')."
        repeated = self.repeats.reason(problem.index, problem.where, problem.answer, message)
        if repeated:
            return repeated
        where = self.ids.setdefault(problem.id, problem.where)
        if where != problem.where:
            raise DataError(f"{problem.where}: id '{problem.id}' is also at {where}. Ids must be unique.")
        return None

    def refuse_shared(self) -> None:
        if self.shared:
            raise DataError(
                f"{len(self.shared)} problems are in two splits, first: {self.shared[0]}."
                " Held-out accuracy would mean nothing; remove them from one file."
            )


def _put(out: Output, problem: Problem, instruction: str, keep_without_trace: bool) -> None:
    reason = trace_fault(problem.solution, problem.answer)
    if reason:
        out.drop_trace(problem.split, reason)
        if not keep_without_trace:
            return out.drop_row(problem.split, "no usable trace")
    content = f"{problem.problem}\n{instruction}" if instruction else problem.problem
    prompt = [{"role": "user", "content": content}]
    trace = "" if reason else trace_of(problem.solution)
    return out.add(Row(problem.split, problem.id, problem.index, prompt, problem.answer, trace))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l data gsm8k``."""
    arguments.add_common_arguments(parser, arguments.KINDS)
    parser.add_argument("--instruction", default=INSTRUCTION, help="sentence appended to every problem")
    parser.add_argument("--name", default=None, help="split and file name for all rows (default: from the rows)")
    parser.add_argument("--data-source", default="gsm8k", help="verl's data_source (default: %(default)s)")
    arguments.add_without_trace(parser, "keep")
    arguments.add_drop_repeats(parser)


def main(args: argparse.Namespace) -> int:
    """``s2l data gsm8k``. Returns the exit status; unusable input raises DataError."""
    keep = args.without_trace == "keep"
    settings = {"instruction": args.instruction, "name": args.name, "drop_repeats": args.drop_repeats}
    return arguments.run(args, convert, keep_without_trace=keep, **settings)
