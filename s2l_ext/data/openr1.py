"""Open-R1 style mathematics (OpenR1-Math-220k) to verl parquet with checked reasoning traces and tiers by source.

Columns read: ``problem`` and ``answer``; ``generations`` (a text or a list of them), or else the assistant's turns in
``messages``; ``source``, ``question_type``, ``is_reasoning_complete``, ``correctness_math_verify`` where present.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from s2l_ext.data import converting, reading, traces, values
from s2l_ext.data.command import command_of
from s2l_ext.data.converting import BATCH_ROWS, BROKEN, KEEP_OR_DROP, Converter, Output, Records, Row, option
from s2l_ext.data.drawing import TierDraw
from s2l_ext.data.gsm8k import INSTRUCTION
from s2l_ext.errors import DataError
from s2l_ext.rewards import math_helper

LABELS = "correctness_math_verify"
COLUMNS: Sequence[str] = (
    *("problem", "answer", "source", "question_type", "messages", "generations"),
    *("is_reasoning_complete", LABELS),
)
CHOICES = re.compile(r"(?:^|[\s$({\\])\(?A[).:}].+?[\s$({\\]\(?B[).:}].+?[\s$({\\]\(?C[).:}]", re.DOTALL)
LETTER = re.compile(r"(?:\\text(?:bf)?\{)?\(?([A-E])\)?\}?\.?")
MATH_TIERS = ("cn_contest", "aops_forum", "amc_aime", "olympiads", "olympiads_ref")
"""Sources, easiest first (G2RPO-A, curriculum learning); for ``s2l.curriculum.tier_order``."""
NO_PROBLEM, NO_GOLD, DUPLICATE = "no problem text", "no answer", "duplicate problem"
OTHER_GOLD, NOT_DRAWN = "duplicate problem with another answer", "not drawn"
MULTIPLE_CHOICE, OTHER_SOURCE, UNLABELLED = "multiple choice", "other source", "no correctness label"

Verdict = tuple[str, list[str]]
"""The first usable trace, empty if there is none, and what was against the generations before it."""


@dataclass(frozen=True)
class Candidate:
    """A problem with the texts that may become its trace; ``usable[i]`` and ``right[i]`` are recorded flags or None."""

    problem: str
    answer: str
    source: str
    generations: list[str]
    usable: list[bool | None]
    right: list[bool | None]
    question_type: str = ""


@dataclass(frozen=True)
class OpenR1(Converter):
    """Problems of MATH_TIERS with the first good generation as trace. A row's result does not depend on ``workers``;
    after ``row_seconds`` the rest of a row's generations is not read."""

    command = "openr1"
    columns = COLUMNS
    tiers = MATH_TIERS
    data_source: str = option("openr1_math", "verl's data_source")
    val_share: float = option(0.0, **converting.VAL_SHARE)
    trust_labels: bool = option(False, f"believe column {LABELS} instead of grading")
    multiple_choice: str = option("drop", "problems with choices", choices=KEEP_OR_DROP)
    other_sources: str = option(
        "drop", f"sources other than {', '.join(MATH_TIERS)}; kept, they are tiers after these", choices=KEEP_OR_DROP
    )
    without_trace: str = option("drop", **converting.WITHOUT_TRACE)
    instruction: str = option(INSTRUCTION, "sentence appended to every problem")
    workers: int = option(1, "processes that grade", type=int, metavar="N")
    row_seconds: float = option(
        traces.GRADE_SECONDS, "time for judging the generations of one row", type=float, metavar="S"
    )
    num_rows: int | None = option(
        None, "draw N of the usable rows, evenly over the tiers", type=int, metavar="N", flag="--rows"
    )
    seed: int = option(0, "of --rows", type=int)

    def check(self) -> None:
        super().check()
        if self.workers < 1 or self.row_seconds <= 0:
            raise DataError(
                f"--workers {self.workers} must be at least 1 and --row-seconds {self.row_seconds} above 0."
            )
        if self.num_rows is not None and self.num_rows < 1:
            raise DataError(f"--rows {self.num_rows} must be at least 1.")

    def check_file(self, path: Path) -> None:
        reading.require_file(path)
        if reading.is_parquet(path):
            require_columns(reading.parquet_columns(path), f"{path}:0")

    def rows(self, records: Records, out: Output) -> Iterator[Row]:
        draw: TierDraw[Row] | None = None if self.num_rows is None else TierDraw(self.num_rows, self.seed)
        candidates = self._candidates(records, out)
        with self._start_judges() as judge_all:
            while batch := list(islice(candidates, BATCH_ROWS)):
                for row in self._make_rows(batch, judge_all(batch), out):
                    if draw is None or row.split != self.name:
                        yield row
                    else:
                        draw.offer(row.tier, row.id, row)
        if draw is not None:
            yield from draw.drawn()
            for _ in range(draw.left_out):
                out.drop_row(str(self.name), NOT_DRAWN)

    def _candidates(self, records: Records, out: Output) -> Iterator[Candidate]:
        """Rows worth judging; the others are counted as dropped."""
        answers: dict[int, str] = {}
        others, first = Counter[str](), ""
        for _, where, record in records:
            candidate = read_candidate(record, where, self.trust_labels)
            fault, index = self._row_fault(candidate), converting.index_of(candidate.problem)
            if fault is None and index in answers:
                fault = DUPLICATE if answers[index] == candidate.answer else OTHER_GOLD
            if fault is None:
                answers[index] = candidate.answer
                yield candidate
                continue
            out.drop_row(self.split_of(candidate.problem) if candidate.problem else str(self.name), fault)
            if fault == OTHER_SOURCE:
                others[candidate.source] += 1
                first = first or where
        if others and not answers:
            raise DataError(
                f"{first}: column 'source': no row has one of {', '.join(MATH_TIERS)}. Found: "
                f"{', '.join(f'{name} ({rows} rows)' for name, rows in others.items())}; a number is a class "
                "label without its name. Write the names, or pass --other-sources keep."
            )

    def _row_fault(self, candidate: Candidate) -> str | None:
        if not candidate.problem:
            return NO_PROBLEM
        if not candidate.answer:
            return NO_GOLD
        if values.text_fault(candidate.problem) or values.text_fault(candidate.answer):
            return BROKEN
        if self.multiple_choice == "drop" and is_multiple_choice(candidate):
            return MULTIPLE_CHOICE
        if self.other_sources == "drop" and candidate.source not in MATH_TIERS:
            return OTHER_SOURCE
        return None

    def _make_rows(self, batch: list[Candidate], verdicts: Iterator[Verdict], out: Output) -> Iterator[Row]:
        for candidate, (trace, faults) in zip(batch, verdicts, strict=True):
            text = candidate.problem
            split = self.split_of(text)
            for fault in faults:
                out.drop_trace(split, fault)
            if not trace and self.without_trace == "drop":
                out.drop_row(split, converting.NO_TRACE)
                continue
            identity, index = f"openr1-{converting.digest(text)[:16]}", converting.index_of(text)
            prompt = converting.user_prompt(text, self.instruction)
            yield Row(split, identity, index, prompt, candidate.answer, trace, candidate.source)

    @contextmanager
    def _start_judges(self) -> Iterator[Callable[[list[Candidate]], Iterator[Verdict]]]:
        """A function that judges a batch, in order, here or in other processes."""
        if self.workers == 1 or self.trust_labels:
            if not self.trust_labels:
                _warm_up()
            yield partial(map, partial(judge, options=self))
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=context, initializer=_warm_up) as pool:
            yield partial(pool.map, partial(judge, options=self), chunksize=8)


# ---- rows --------------------------------------------------------------------------------------------------------


def require_columns(found: Sequence[str], where: str, needed: Sequence[str] = ("problem", "answer")) -> None:
    """Raise DataError, with the columns that were found, where one that is needed is missing."""
    missing = next((name for name in needed if name not in found), None)
    if missing is None:
        return
    verl = " It is verl parquet already, which needs no conversion." if {"prompt", "reward_model"} <= {*found} else ""
    raise DataError(f"{where}: column '{missing}' is missing. Found: {', '.join(found) or 'none'}.{verl}")


def read_candidate(record: dict[str, Any], where: str, trust_labels: bool) -> Candidate:
    """The row's columns. Raises DataError for one that is missing or of another type."""
    require_columns(list(record), where)
    if trust_labels and LABELS not in record:
        raise DataError(f"{where}: --trust-labels needs column '{LABELS}'. Leave it out to have the traces graded.")
    texts = _read_generations(record, where)
    return Candidate(
        _read_text(record, "problem", where),
        _read_answer(record, where),
        _read_text(record, "source", where) or "unknown",
        texts,
        _read_flags(record, "is_reasoning_complete", len(texts), where),
        _read_flags(record, LABELS, len(texts), where),
        _read_text(record, "question_type", where),
    )


def _read_text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if value is None:
        return ""
    number = values.plain_number(value)
    if number is None and not isinstance(value, str):
        raise DataError(f"{where}: column '{key}' holds {values.shown(value)}, not text. Write text, or null for none.")
    text = str(value) if number is None else number
    values.refuse_list_as_text(text, where, f"column '{key}'")
    return text if values.text_fault(text) else text.strip()  # strip takes a form feed off, and hides it


def _read_answer(record: dict[str, Any], where: str) -> str:
    """Empty for none; a control character in it is counted later, as in the problem."""
    value = record.get("answer")
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if isinstance(value, str) and values.text_fault(value):
        return value
    return converting.as_answer(record, "answer", where)


def _read_generations(record: dict[str, Any], where: str) -> list[str]:
    texts = record.get("generations")
    for name in ("generations", "messages", "is_reasoning_complete", LABELS):
        if isinstance(record.get(name), str):
            values.refuse_list_as_text(record[name], where, f"column '{name}'")
    if texts is None:
        turns = record.get("messages") or []
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise DataError(f"{where}: column 'messages' is no list of {{role, content}}.")
        texts = [turn.get("content") for turn in turns if turn.get("role") == "assistant"]
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str | None) for text in texts):
        raise DataError(f"{where}: column 'generations' is neither a text nor a list of texts.")
    return [text or "" for text in texts]


def _read_flags(record: dict[str, Any], key: str, count: int, where: str) -> list[bool | None]:
    """One recorded flag a generation; all None when the row has none."""
    flags = record.get(key)
    if flags is None:
        return [None] * count
    if not isinstance(flags, list) or len(flags) != count:
        found = f"{len(flags)} values" if isinstance(flags, list) else type(flags).__name__
        raise DataError(f"{where}: column '{key}' has {found} for {count} generations. It needs one for each.")
    other = [flag for flag in flags if not isinstance(flag, bool | None)]
    if other:
        raise DataError(f"{where}: column '{key}' has {values.shown(other[0])}. A flag is true, false or null.")
    return flags


def is_multiple_choice(candidate: Candidate) -> bool:
    """Said by ``question_type`` (MCQ), or the answer is one letter A to E and the problem lists A, B and C."""
    if candidate.question_type.upper() == "MCQ":
        return True
    return bool(LETTER.fullmatch(candidate.answer) and CHOICES.search(candidate.problem))


# ---- traces ------------------------------------------------------------------------------------------------------


def judge(candidate: Candidate, options: OpenR1) -> Verdict:
    """Check the generations in order until one is complete, parsable and correct."""
    faults: list[str] = [] if candidate.generations else [traces.MISSING]
    started = time.monotonic()
    for position, text in enumerate(candidate.generations):
        left = options.row_seconds - (time.monotonic() - started)
        trace = traces.normalise(text)
        fault = (
            BROKEN if values.text_fault(text) else _trace_fault(trace, candidate, position, options.trust_labels, left)
        )
        if fault is None:
            return trace, faults
        faults.append(fault)
    return "", faults


def _trace_fault(trace: str, candidate: Candidate, position: int, trust_labels: bool, seconds: float) -> str | None:
    if candidate.usable[position] is False:
        return traces.UNFINISHED
    fault = traces.form_fault(trace, candidate.answer)
    if fault:
        return fault
    if trust_labels:
        label = candidate.right[position]
        return UNLABELLED if label is None else (None if label else traces.WRONG)
    return traces.answer_fault(trace, candidate.answer, seconds) if seconds > 0 else traces.TOO_SLOW


def _warm_up() -> None:
    """Starting the grader takes seconds that must not count as a row's."""
    math_helper.compare("x", "x", whole=False)


add_arguments, main = command_of(OpenR1)
