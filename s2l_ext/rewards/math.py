"""Is a mathematical answer right? The final answer is extracted here and judged by math-verify."""

from __future__ import annotations

import re
from typing import Any

from s2l_ext.rewards import math_helper

TAIL_CHARS = 4000
SHOWN_CHARS = 200

BOX = "\\boxed{"
BETWEEN_BOXES = re.compile(r"(?:\s|\$|,|;|\\quad|\\text\{\s*(?:and|or)\s*\}|and|or|\\[()\[\]])*")
HASHES = re.compile(r"^####[ \t]+(\S.*?)\s*$", re.MULTILINE)
TAGS = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
INTEGER = re.compile(r"[-+]?\d{1,30}")


def grade(prediction: str, gold: str) -> bool:
    """Whether ``prediction`` (a final answer or a whole solution) ends in an answer equal to ``gold``.

    Taken from the last 4000 characters: the last ``\\boxed{}``, else the last ``#### x``, else the last
    ``<answer>x</answer>``, else what math-verify itself finds. Never raises; what cannot be judged is wrong.
    """
    return _judge(prediction, gold)[0]


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """verl's ``custom_reward_function`` (path ``pkg://s2l_ext.rewards.math``).

    Returns:
        ``score`` and ``acc`` (1.0 when right), ``format_ok`` (1.0 when the answer was marked by a box, ``####`` or
        tags), and ``extracted`` (the answer that was judged, cut to 200 characters; empty when none was found).
    """
    correct, extracted, marked = _judge(solution_str, ground_truth)
    return {
        "score": float(correct),
        "acc": float(correct),
        "format_ok": float(marked),
        "extracted": extracted[:SHOWN_CHARS],
    }


def marked_answer(text: str) -> str | None:
    """The final answer that ``text`` marks as such, or None."""
    boxes = _last_boxes(text)
    if boxes is not None:
        return boxes
    for pattern in (HASHES, TAGS):
        found = pattern.findall(text)
        if found:
            return str(found[-1])
    return None


def _last_boxes(text: str) -> str | None:
    """Content of the last closed box; boxes with only "and" or a comma between them are one answer, kept whole."""
    spans: list[tuple[int, int]] = []
    start = text.find(BOX)
    while start >= 0:
        end = _closing_brace(text, start + len(BOX))
        if end is None:
            break
        spans.append((start, end))
        start = text.find(BOX, end)
    if not spans:
        return None
    first = len(spans) - 1
    while first > 0 and BETWEEN_BOXES.fullmatch(text, spans[first - 1][1], spans[first][0]):
        first -= 1
    if first == len(spans) - 1:
        return text[spans[-1][0] + len(BOX) : spans[-1][1] - 1].strip()
    return text[spans[first][0] : spans[-1][1]]


def _closing_brace(text: str, position: int) -> int | None:
    """Index after the brace that closes a group opened just before ``position``."""
    depth = 1
    while position < len(text):
        character = text[position]
        position += 2 if character == "\\" else 1
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return position
    return None


def _judge(prediction: object, gold: object) -> tuple[bool, str, bool]:
    """Correct, the answer judged, and whether it was marked."""
    if not isinstance(prediction, str) or gold is None or not str(gold).strip():
        return False, "", False
    tail, truth = prediction[-TAIL_CHARS:], str(gold).strip()
    marked = marked_answer(tail)
    answer = tail.strip() if marked is None else marked
    if INTEGER.fullmatch(answer) and INTEGER.fullmatch(truth):
        return int(answer) == int(truth), answer, marked is not None
    correct, found = math_helper.compare(answer, truth, whole=marked is None)
    return correct, found if marked is None else answer, marked is not None
