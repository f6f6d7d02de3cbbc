"""What preflight asks of the traces that guided rollouts start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s2l_ext.data.answer_places import is_distinct, known_answer, spellings
from s2l_ext.data.prompts import PromptTable, prompt_ids, read_columns, values_at
from s2l_ext.data.traces import answer_start, is_answer_only
from s2l_ext.data.values import looks_like_a_list
from s2l_ext.errors import DataError
from s2l_ext.methods.guidance.config import GuidanceConfig
from s2l_ext.store.reader import RolloutStore
from s2l_ext.utils.digests import file_digests

ROUND_TRIPS = 1000
"""Traces that are tokenised and decoded again; all are checked for other faults."""
SHOWN_CHARS = 60
KEY = "s2l.guidance.trace"
TEACHER_KEY = "s2l.guidance.teacher_rollouts"


def trace_fault(trace: Any) -> str | None:
    """Why a session cannot start from this trace; None if it can."""
    if trace is None or (isinstance(trace, str) and not trace.strip()):
        return "no trace"
    if not isinstance(trace, str):
        return f"a trace that is {type(trace).__name__}, not text"
    if looks_like_a_list(trace):
        return "a trace that is a list written as text"
    return "a trace that holds the answer only" if is_answer_only(trace) else None


def read_teacher_rollouts(path: str) -> dict[str, str]:
    """The first right answer of each prompt, by prompt id, from parquet or JSON lines with the fields ``prompt_id``,
    ``response`` (text) and ``acc`` (1 is right), or from the folder of a store that ``s2l explore`` wrote. Raises
    DataError: the file is missing or unreadable, lacks a field, or has no right answer; the store is damaged."""
    if Path(path).expanduser().is_dir():
        traces = RolloutStore(path, TEACHER_KEY).correct_texts()
    else:
        traces = {}
        for name, response, acc in read_columns(path, ("prompt_id", "response", "acc"), TEACHER_KEY):
            if acc == 1 and isinstance(response, str):
                traces.setdefault(str(name), response)
    if not traces:
        raise DataError(f"{TEACHER_KEY}={path}: no row has a response with acc = 1, so there is nothing to start from.")
    return traces


def rollouts_digest(path: str) -> str:
    """Of the same file or folder: the same wherever it lies."""
    is_store = Path(path).expanduser().is_dir()
    return RolloutStore(path, TEACHER_KEY, verify=False).digest if is_store else file_digests([path])[0]


def check_traces(table: PromptTable, guidance: GuidanceConfig, tokenizer: Any, prompt_key: str = "prompt") -> list[str]:
    """Check every row's trace, and whether the learner's tokenizer gives the first of them back unchanged. Returns a
    warning with the number of rows that will be sampled unguided, and the share of traces that give away the right
    answer in their first ``length.initial`` tokens. Raises DataError: traces are missing or unusable, or not given
    back."""
    if guidance.teacher_rollouts is None:
        traces = values_at(table, guidance.trace, KEY)
    else:
        store = read_teacher_rollouts(guidance.teacher_rollouts)
        traces = [store.get(name) for name in prompt_ids(table, prompt_key)]
    faults = {row: fault for row, trace in enumerate(traces) if (fault := trace_fault(trace))}
    warnings = _judge(faults, len(traces), guidance)
    _check_round_trips([trace for row, trace in enumerate(traces) if row not in faults], tokenizer)
    known = [(traces[row], answer) for row, answer in enumerate(_answers(table)) if row not in faults and answer]
    return [*warnings, *_handed_over(known[:ROUND_TRIPS], guidance, tokenizer)]


def _answers(table: PromptTable) -> list[str | None]:
    """Right answers that are short texts, in the order of the rows; none for data without them."""
    if "reward_model" not in table.names:
        return []
    return [known_answer((value or {}).get("ground_truth")) for value in table.column("reward_model", KEY)]


def _handed_over(known: Sequence[tuple[str, str]], guidance: GuidanceConfig, tokenizer: Any) -> list[str]:
    found = sum(_holds(trace, answer, guidance, tokenizer) for trace, answer in known)
    if not found:
        return []
    fix = (
        "Shorten it if that is too much" if guidance.stop_before_answer else "Set s2l.guidance.stop_before_answer=true"
    )
    return [
        f"s2l.guidance.length.initial={guidance.length.initial}: this many tokens of a trace give away the right "
        f"answer in {found} of {len(known)} rows ({found / len(known):.1%}). {fix}."
    ]


def _holds(trace: str, answer: str, guidance: GuidanceConfig, tokenizer: Any) -> bool:
    """Whether the first tokens give the answer away, or hold one that does not stand in a text by chance."""
    start = answer_start(trace, answer)
    text = trace[:start] if guidance.stop_before_answer else trace
    text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)[: guidance.length.initial])
    given = not guidance.stop_before_answer and start is not None and start < len(text)
    return given or (is_distinct(answer) and spellings(answer).search(text) is not None)


def _judge(faults: dict[int, str], rows: int, guidance: GuidanceConfig) -> list[str]:
    if not faults:
        return []
    first = min(faults)
    reasons = {reason: sum(fault == reason for fault in faults.values()) for reason in faults.values()}
    counted = ", ".join(f"{count} have {reason}" for reason, count in reasons.items())
    where = (
        f"{KEY}={guidance.trace}" if guidance.teacher_rollouts is None else f"{TEACHER_KEY}={guidance.teacher_rollouts}"
    )
    text = f"{where}: {len(faults)} of {rows} rows cannot guide ({counted}); the first is row {first}"
    if guidance.missing_trace == "error" or len(faults) == rows:
        raise DataError(
            f"{text}. Drop them (`s2l data` does), or set s2l.guidance.missing_trace=skip_guidance to sample their "
            "groups unguided."
        )
    return [f"{text}. Their groups are sampled unguided (s2l.guidance.missing_trace=skip_guidance)."]


def _check_round_trips(traces: Sequence[str], tokenizer: Any) -> None:
    for trace in traces[:ROUND_TRIPS]:
        again = tokenizer.decode(tokenizer.encode(trace, add_special_tokens=False))
        if again == trace:
            continue
        at = next(
            (i for i, (a, b) in enumerate(zip(trace, again, strict=False)) if a != b), min(len(trace), len(again))
        )
        part = slice(max(at - 10, 0), at + SHOWN_CHARS)
        raise DataError(
            f"{KEY}: the learner's tokenizer does not give a trace back: {trace[part]!r} becomes {again[part]!r} (from "
            f"character {part.start}). Guidance would be another text than the reward judges; clean the traces or use "
            "another tokenizer."
        )
