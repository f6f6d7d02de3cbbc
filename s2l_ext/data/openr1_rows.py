"""One row of an Open-R1 style file: its columns, checked and as one value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ext.data import converting, values
from s2l_ext.errors import DataError

LABELS = "correctness_math_verify"
COLUMNS: Sequence[str] = (
    *("problem", "answer", "source", "question_type", "messages", "generations"),
    *("is_reasoning_complete", LABELS),
)
CHOICES = re.compile(r"(?:^|[\s$({\\])\(?A[).:}].+?[\s$({\\]\(?B[).:}].+?[\s$({\\]\(?C[).:}]", re.DOTALL)
LETTER = re.compile(r"(?:\\text(?:bf)?\{)?\(?([A-E])\)?\}?\.?")


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
