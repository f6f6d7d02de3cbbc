"""Is a mathematical answer right? Extracted here, judged exactly where that is certain, else by math-verify."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any

from s2l_ext.rewards import fast_math, math_helper, parts, spelling
from s2l_ext.rewards.extraction import BETWEEN_BOXES, HASHES, TAGS, Extracted, boxes, extract, marked_answer
from s2l_ext.rewards.golds import as_text
from s2l_ext.rewards.hedges import hedged
from s2l_ext.rewards.math_helper import Verdict
from s2l_ext.rewards.math_settings import Judging, Shaping, parse_judging, parse_settings

__all__ = [
    "BETWEEN_BOXES",
    "HASHES",
    "SHOWN_CHARS",
    "TAGS",
    "TAIL_CHARS",
    "Verdict",
    "boxes",
    "check_keywords",
    "compute_score",
    "compute_score_async",
    "grade",
    "marked_answer",
    "shaped",
]

TAIL_CHARS = 4000
SHOWN_CHARS = 200
THREADS = 16

LONGEST_ANSWER = 4000
"""A longer answer is compared as text only."""
KNOWN_ANSWERS = 1024
"""Verdicts of math-verify that are remembered: the responses of a group often give the same answer."""


NOTHING = Extracted("", False)


def grade(prediction: str, gold: Any, **judging: Any) -> bool:
    """Whether ``prediction`` (a final answer or a whole solution) ends in an answer equal to ``gold``.

    What follows the last ``</think>`` is read. The answer is the last of ``\\boxed{}``, ``<answer>x</answer>``, a line
    ``Answer: x`` and a line ``#### x``, else what math-verify finds in the last 4000 characters. What cannot be judged
    is wrong; no text raises.

    Args:
        gold: text, a number, or a list that holds one of these.
        judging: fields of :class:`math_settings.Judging`.

    Raises:
        ConfigError: a keyword is unknown or out of range.
        DataError: the gold is a list of several, or no number.
        ResourceError: math-verify's process cannot start.
    """
    settings = parse_judging(judging)
    truth = as_text(gold)
    extracted = _extract(prediction, truth, settings)
    return (_quick(extracted, truth, settings) or _ask(extracted, truth, settings)).correct


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """verl's ``custom_reward_function`` (path ``pkg://s2l_ext.rewards.math``).

    Args:
        extra_info: ``response_length`` (tokens) is read for the overlong part, where a caller puts it there.
        kwargs: ``reward_kwargs``: fields of :class:`math_settings.Judging` and :class:`math_settings.Shaping`.

    Returns:
        ``score``: the weighted sum, by default ``acc``; ``acc`` (1.0 when right); ``format_ok`` (1.0 when the answer
        stood where ``extraction`` looks for it); ``extracted`` (the answer that was judged, cut to 200 characters;
        empty when none was found); ``timed_out`` (1.0 when judging ran out of CPU seconds, so ``acc`` is 0
        without a verdict); ``overlong`` (the penalty, at most 0) where that part is on.

    Raises:
        ConfigError: a keyword is unknown, out of range or without effect, or a needed token count is missing.
        DataError: the ground truth is a list of several, or no number.
        ResourceError: math-verify's process cannot start.
    """
    judging, shaping = parse_settings(kwargs)
    gold = as_text(ground_truth)
    extracted = _extract(solution_str, gold, judging)
    verdict = _quick(extracted, gold, judging) or _ask(extracted, gold, judging)
    return shaped(verdict, extracted, shaping, solution_str, extra_info)


async def compute_score_async(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """:func:`compute_score` for a reward loop that awaits (``custom_reward_function.name=compute_score_async``).

    Waits for math-verify in its own threads, so that slow answers leave verl's executor, which also decodes the
    responses, free.
    """
    judging, shaping = parse_settings(kwargs)
    gold = as_text(ground_truth)
    extracted = _extract(solution_str, gold, judging)
    verdict = _quick(extracted, gold, judging)
    if verdict is None:
        loop = asyncio.get_running_loop()
        verdict = await loop.run_in_executor(_threads(), _ask, extracted, gold, judging)
    return shaped(verdict, extracted, shaping, solution_str, extra_info)


def check_keywords(reward_kwargs: Mapping[str, Any]) -> None:
    """Raise ConfigError for ``reward_kwargs`` that :func:`compute_score` would refuse, before anything is loaded."""
    parse_settings(reward_kwargs)


def _extract(prediction: object, gold: str, judging: Judging) -> Extracted:
    if not isinstance(prediction, str) or not gold:
        return NOTHING
    found = extract(prediction, judging.extraction, judging.thinking)
    return replace(found, answer=found.answer[-TAIL_CHARS:]) if found.whole else found


def _quick(extracted: Extracted, gold: str, judging: Judging) -> Verdict | None:
    """The verdict where no computer algebra is needed."""
    answer = extracted.answer
    if not answer:
        return Verdict(False, "")
    if len(answer) > LONGEST_ANSWER and not extracted.whole:
        return Verdict(spelling.squeezed(answer) == spelling.squeezed(gold), answer)
    if judging.comparison or (extracted.whole and hedged(answer)):
        return None
    found = fast_math.verdict(answer, gold, extracted.whole)
    if found is None and not extracted.whole and len(answer) <= fast_math.SHORT_CHARS:
        found = fast_math.verdict(spelling.plain(answer), spelling.plain(gold))
        found = found and (found[0], answer)
    return found and Verdict(*found)


def _ask(extracted: Extracted, gold: str, judging: Judging) -> Verdict:
    """math-verify's verdict; a marked answer that was judged before, as in a group, is not judged again."""
    if extracted.whole or len(gold) > LONGEST_ANSWER:
        return _judged(extracted, gold, judging)
    try:
        return _known(extracted, gold, judging)
    except _NoVerdict as late:
        return late.verdict


class _NoVerdict(Exception):
    """Time ran out. Raised, so that it is not remembered."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


@lru_cache(maxsize=KNOWN_ANSWERS)
def _known(extracted: Extracted, gold: str, judging: Judging) -> Verdict:
    verdict = _judged(extracted, gold, judging)
    if verdict.timed_out:
        raise _NoVerdict(verdict)
    return verdict


def _judged(extracted: Extracted, gold: str, judging: Judging) -> Verdict:
    verdict = math_helper.compare(
        extracted.answer,
        gold,
        extracted.whole,
        seconds=judging.timeout_s,
        size=judging.pool_size,
        **judging.comparison,
    )
    return verdict if extracted.whole else verdict._replace(extracted=extracted.answer)


def shaped(
    verdict: Verdict, extracted: Extracted, shaping: Shaping, solution: object, extra_info: dict[str, Any] | None
) -> dict[str, Any]:
    """What :func:`compute_score` returns for a verdict, whoever gave it."""
    acc, format_ok = float(verdict.correct), float(extracted.found)
    weighted = {"acc": (shaping.accuracy_weight, acc), "format_ok": (shaping.format_weight, format_ok)}
    result = {"score": 0.0, "acc": acc, "format_ok": format_ok, "extracted": verdict.extracted[:SHOWN_CHARS]}
    result["timed_out"] = float(verdict.timed_out)
    if shaping.overlong_buffer is not None:
        weight, value = _overlong(shaping, solution, extra_info)
        weighted["overlong"] = (weight, value)
        result["overlong"] = weight * value
    return {**result, "score": parts.weighted_sum(weighted)}


def _overlong(shaping: Shaping, solution: object, extra_info: dict[str, Any] | None) -> tuple[float, float]:
    assert shaping.overlong_buffer is not None and shaping.max_response_length is not None
    length = parts.response_length(str(solution or ""), extra_info, shaping.length_tokenizer)
    weight = 1.0 if shaping.overlong_penalty is None else shaping.overlong_penalty
    return weight, parts.overlong(length, shaping.max_response_length, shaping.overlong_buffer)


_THREADS: ThreadPoolExecutor | None = None


def _threads() -> ThreadPoolExecutor:
    global _THREADS
    if _THREADS is None:
        _THREADS = ThreadPoolExecutor(THREADS, thread_name_prefix="s2l-math")
    return _THREADS


def _forget_threads() -> None:
    global _THREADS
    _THREADS = None


os.register_at_fork(after_in_child=_forget_threads)
