"""Open-R1 style mathematics (OpenR1-Math-220k) to verl parquet with checked reasoning traces and tiers by source.

Columns read: ``problem`` and ``answer``; ``generations`` (a text or a list of them), or else the assistant's turns in
``messages``; ``source``, ``question_type``, ``is_reasoning_complete``, ``correctness_math_verify`` where present.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from s2l_ext.data import arguments, converting, reading, traces, values
from s2l_ext.data.converting import BATCH_ROWS, Output, Row, Source, Written
from s2l_ext.data.drawing import TierDraw
from s2l_ext.data.gsm8k import INSTRUCTION
from s2l_ext.data.openr1_rows import COLUMNS, LABELS, Candidate, is_multiple_choice, require_columns
from s2l_ext.data.openr1_rows import candidate as read_candidate
from s2l_ext.errors import DataError
from s2l_ext.rewards import math_helper

MATH_TIERS = ("cn_contest", "aops_forum", "amc_aime", "olympiads", "olympiads_ref")
"""Sources, easiest first (G2RPO-A, curriculum learning); for ``s2l.curriculum.tier_order``."""

NO_PROBLEM, NO_GOLD, DUPLICATE = "no problem text", "no answer", "duplicate problem"
OTHER_GOLD, BROKEN, NOT_DRAWN = "duplicate problem with another answer", "control character inside", "not drawn"
MULTIPLE_CHOICE, OTHER_SOURCE, NO_TRACE = "multiple choice", "other source", "no usable trace"
UNLABELLED = "no correctness label"


@dataclass(frozen=True)
class Options:
    """What is kept, and how traces are judged.

    Attributes:
        trust_labels: believe ``correctness_math_verify`` and grade nothing.
        keep_multiple_choice: keep problems that offer choices.
        keep_other_sources: keep sources outside MATH_TIERS as tiers after them.
        keep_without_trace: keep rows none of whose generations can be used, with an empty trace.
        instruction: sentence appended to every problem.
        name: split and file name.
        val_share: share of the problems for ``val.parquet``, by their hash.
        row_seconds: time for judging one row's generations; the rest of them is not looked at after it.
        rows: so many rows of ``name``, drawn evenly over the tiers; None keeps all.
        seed: of that draw.
    """

    trust_labels: bool = False
    keep_multiple_choice: bool = False
    keep_other_sources: bool = False
    keep_without_trace: bool = False
    instruction: str = INSTRUCTION
    name: str = "train"
    val_share: float = 0.0
    row_seconds: float = traces.GRADE_SECONDS
    rows: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Judged:
    """The first usable trace, empty if there is none, and what was against the generations before it."""

    trace: str
    faults: list[str]


@dataclass
class _Seen:
    """Answers of the problems so far, by their hash; rows of other sources, by name, and where the first is."""

    answers: dict[int, str] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    first: str = ""

    def other(self, source: str, where: str) -> None:
        self.first = self.first or where
        self.sources[source] = self.sources.get(source, 0) + 1

    def refuse_other_sources(self) -> None:
        """Raise DataError where no row has a source of MATH_TIERS."""
        if self.sources and not self.answers:
            raise DataError(
                f"{self.first}: column 'source': no row has one of {', '.join(MATH_TIERS)}. Found: "
                f"{', '.join(f'{name} ({rows} rows)' for name, rows in self.sources.items())}; a number is a class "
                "label without its name. Write the names, or pass --other-sources keep."
            )


def convert(
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    options: Options | None = None,
    limit: int | None = None,
    workers: int = 1,
    data_source: str = "openr1_math",
    overwrite: bool = False,
    progress: bool = False,
) -> list[Written]:
    """Write ``<output>/<name>.parquet``, and ``val.parquet`` if asked for, with a report of counts beside each.

    Args:
        input: ``.parquet``, ``.jsonl`` or ``.jsonl.gz`` files; shards of one data set in any order.
        limit: first rows of every input file only.
        workers: processes that grade; a row's result does not depend on their number.

    Raises:
        DataError: a file that cannot be read or lacks a column, a column of an unknown type (file, row, column), no
            rows left (with the counts), or an existing file that holds other data.
    """
    files = converting.paths_of(input)
    options = options or Options()
    seen = _Seen()
    draw: TierDraw[Row] | None = TierDraw(options.rows, options.seed) if options.rows else None
    with (
        Output(output, Source("openr1", data_source, files), overwrite, MATH_TIERS) as out,
        _grading(options, workers) as grade,
    ):
        out.expect(options.name, *(["val"] if options.val_share else []))
        for path in files:
            rows = _candidates(_read(path, limit, progress), out, seen, options)
            while batch := list(islice(rows, BATCH_ROWS)):
                for candidate, judged in zip(batch, grade(batch), strict=True):
                    _put(out, candidate, judged, options, draw)
        _put_drawn(out, draw, options)
        seen.refuse_other_sources()
    return out.files


def _read(path: Path, limit: int | None, progress: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = reading.read_rows(path, COLUMNS, limit, progress)
    if reading.is_parquet(path):
        require_columns(reading.parquet_columns(path), f"{path}:0")
    return rows


# ---- rows ---------------------------------------------------------------------------------------------------------


def _candidates(
    records: Iterator[tuple[str, dict[str, Any]]], out: Output, seen: _Seen, options: Options
) -> Iterator[Candidate]:
    """Rows worth judging; the others are counted as dropped."""
    for where, record in records:
        candidate = read_candidate(record, where, options.trust_labels)
        split = converting.split_of(candidate.problem, options.name, options.val_share)
        reason = _row_fault(candidate, options)
        index = converting.index_of(candidate.problem)
        if reason is None and index in seen.answers:
            reason = DUPLICATE if seen.answers[index] == candidate.answer else OTHER_GOLD
        if reason == OTHER_SOURCE:
            seen.other(candidate.source, where)
        if reason:
            out.drop_row(split if candidate.problem else options.name, reason)
            continue
        seen.answers[index] = candidate.answer
        yield candidate


def _row_fault(candidate: Candidate, options: Options) -> str | None:
    if not candidate.problem:
        return NO_PROBLEM
    if not candidate.answer:
        return NO_GOLD
    if values.text_fault(candidate.problem) or values.text_fault(candidate.answer):
        return BROKEN
    if not options.keep_multiple_choice and is_multiple_choice(candidate):
        return MULTIPLE_CHOICE
    if not options.keep_other_sources and candidate.source not in MATH_TIERS:
        return OTHER_SOURCE
    return None


def _put(out: Output, candidate: Candidate, judged: Judged, options: Options, draw: TierDraw[Row] | None) -> None:
    text = candidate.problem
    split = converting.split_of(text, options.name, options.val_share)
    for reason in judged.faults:
        out.drop_trace(split, reason)
    if not judged.trace and not options.keep_without_trace:
        return out.drop_row(split, NO_TRACE)
    content = f"{text}\n{options.instruction}" if options.instruction else text
    prompt = [{"role": "user", "content": content}]
    identity = f"openr1-{converting.digest(text)[:16]}"
    index = converting.index_of(text)
    row = Row(split, identity, index, prompt, candidate.answer, judged.trace, candidate.source)
    if draw is None or split != options.name:
        return out.add(row)
    return draw.offer(row.tier, row.id, row)


def _put_drawn(out: Output, draw: TierDraw[Row] | None, options: Options) -> None:
    if draw is None:
        return
    for row in draw.drawn():
        out.add(row)
    for _ in range(draw.left_out):
        out.drop_row(options.name, NOT_DRAWN)


# ---- traces -------------------------------------------------------------------------------------------------------


def judge(candidate: Candidate, options: Options) -> Judged:
    """Look at the generations in order until one is complete, parsable and correct."""
    faults: list[str] = [] if candidate.generations else [traces.MISSING]
    started = time.monotonic()
    for position, text in enumerate(candidate.generations):
        left = options.row_seconds - (time.monotonic() - started)
        trace = traces.normalise(text)
        reason = BROKEN if values.text_fault(text) else _fault(trace, candidate, position, options, left)
        if reason is None:
            return Judged(trace, faults)
        faults.append(reason)
    return Judged("", faults)


def _fault(trace: str, candidate: Candidate, position: int, options: Options, seconds: float) -> str | None:
    if candidate.usable[position] is False:
        return traces.UNFINISHED
    reason = traces.form_fault(trace, candidate.answer)
    if reason:
        return reason
    if options.trust_labels:
        label = candidate.right[position]
        return UNLABELLED if label is None else (None if label else traces.WRONG)
    return traces.answer_fault(trace, candidate.answer, seconds) if seconds > 0 else traces.TOO_SLOW


@contextmanager
def _grading(options: Options, workers: int) -> Iterator[Callable[[list[Candidate]], Iterator[Judged]]]:
    """A function that judges a batch, in order, here or in other processes."""
    if workers == 1 or options.trust_labels:
        if not options.trust_labels:
            _warm_up()
        yield partial(map, partial(judge, options=options))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_warm_up) as pool:
        yield partial(pool.map, partial(judge, options=options), chunksize=8)


def _warm_up() -> None:
    """Starting the grader takes seconds that must not count as a row's."""
    math_helper.compare("x", "x", whole=False)


# ---- command line -------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l data openr1``."""
    arguments.add_common_arguments(parser, arguments.KINDS)
    parser.add_argument("--name", default="train", help="split and file name (default: %(default)s)")
    arguments.add_val_share(parser)
    parser.add_argument("--trust-labels", action="store_true", help=f"believe column {LABELS} instead of grading")
    parser.add_argument(
        "--multiple-choice", choices=("drop", "keep"), default="drop", help="problems with choices (default: drop)"
    )
    parser.add_argument(
        "--other-sources",
        choices=("drop", "keep"),
        default="drop",
        help=f"sources other than {', '.join(MATH_TIERS)}; kept, they are tiers after these (default: drop)",
    )
    arguments.add_without_trace(parser, "drop")
    parser.add_argument("--instruction", default=INSTRUCTION, help="sentence appended to every problem")
    parser.add_argument("--data-source", default="openr1_math", help="verl's data_source (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that grade (default: 1)")
    parser.add_argument(
        "--row-seconds",
        type=float,
        default=traces.GRADE_SECONDS,
        metavar="S",
        help="time for judging the generations of one row (default: %(default)s)",
    )
    parser.add_argument("--rows", type=int, metavar="N", help="draw N of the usable rows, evenly over the tiers")
    parser.add_argument("--seed", type=int, default=0, help="of --rows (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """``s2l data openr1``. Returns the exit status; unusable input raises DataError."""
    if args.workers < 1 or args.row_seconds <= 0:
        raise DataError(f"--workers {args.workers} must be at least 1 and --row-seconds {args.row_seconds} above 0.")
    if args.rows is not None and args.rows < 1:
        raise DataError(f"--rows {args.rows} must be at least 1.")
    options = Options(
        args.trust_labels,
        args.multiple_choice == "keep",
        args.other_sources == "keep",
        args.without_trace == "keep",
        args.instruction,
        args.name,
        args.val_share,
        args.row_seconds,
        args.rows,
        args.seed,
    )
    return arguments.run(args, convert, options=options, workers=args.workers)
