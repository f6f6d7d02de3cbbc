"""Is a mathematical answer right? Extracted here, judged exactly where that is certain, else by math-verify."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any

from s2l_ext.rewards import fast_math, math_helper, parts, spelling
from s2l_ext.rewards.extraction import Extracted, extract
from s2l_ext.rewards.extraction import marked_answer as marked_answer
from s2l_ext.rewards.gold_reading import as_text
from s2l_ext.rewards.hedges import hedged
from s2l_ext.rewards.math_helper import Verdict
from s2l_ext.rewards.math_settings import Judging, Settings, parse

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
    question = _question(prediction, gold, parse(Judging, judging))
    return (_quick(*question) or _ask(*question)).correct


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """verl's ``custom_reward_function`` (path ``pkg://s2l_ext.rewards.math``).

    Args:
        kwargs: ``reward_kwargs``: fields of :class:`math_settings.Settings`.

    Returns:
        ``score``: the weighted sum, by default ``acc``; ``acc`` (1.0 when right); ``format_ok`` (1.0 when the answer
        stood where ``extraction`` looks for it); ``extracted`` (the answer that was judged, cut to 200 characters;
        empty when none was found); ``timed_out`` (1.0 when judging ran out of CPU seconds, so ``acc`` is 0
        without a verdict).

    Raises:
        ConfigError: a keyword is unknown, out of range or without effect.
        DataError: the ground truth is a list of several, or no number.
        ResourceError: math-verify's process cannot start.
    """
    settings = parse(Settings, kwargs)
    question = _question(solution_str, ground_truth, settings)
    return shaped(_quick(*question) or _ask(*question), question[0], settings)


async def compute_score_async(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """:func:`compute_score` for a reward loop that awaits (``custom_reward_function.name=compute_score_async``).

    Waits for math-verify in its own threads, so that slow answers leave verl's executor, which also decodes the
    responses, free.
    """
    settings = parse(Settings, kwargs)
    question = _question(solution_str, ground_truth, settings)
    verdict = _quick(*question)
    if verdict is None:
        verdict = await asyncio.get_running_loop().run_in_executor(_THREADS, _ask, *question)
    return shaped(verdict, question[0], settings)


def _question(prediction: object, gold: Any, judging: Judging) -> tuple[Extracted, str, Judging]:
    truth, found = as_text(gold), NOTHING
    if isinstance(prediction, str) and truth:
        found = extract(prediction, judging.extraction, judging.thinking)
    return replace(found, answer=found.answer[-TAIL_CHARS:]) if found.whole else found, truth, judging


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
        return Verdict(*late.args)


class _NoVerdict(Exception):
    """Time ran out; holds what is returned instead. Raised, so that it is not remembered."""


@lru_cache(maxsize=KNOWN_ANSWERS)
def _known(extracted: Extracted, gold: str, judging: Judging) -> Verdict:
    verdict = _judged(extracted, gold, judging)
    if verdict.timed_out:
        raise _NoVerdict(*verdict)
    return verdict


def _judged(extracted: Extracted, gold: str, judging: Judging) -> Verdict:
    options: dict[str, Any] = {"seconds": judging.timeout_s, "size": judging.pool_size, **judging.comparison}
    verdict = math_helper.compare(extracted.answer, gold, extracted.whole, **options)
    return verdict if extracted.whole else verdict._replace(extracted=extracted.answer)


def shaped(verdict: Verdict, extracted: Extracted, settings: Settings) -> dict[str, Any]:
    """What :func:`compute_score` returns for a verdict, whoever gave it."""
    acc, format_ok = float(verdict.correct), float(extracted.found)
    score = parts.weighted_sum({"acc": (settings.accuracy_weight, acc), "format": (settings.format_weight, format_ok)})
    shown = {"extracted": verdict.extracted[:SHOWN_CHARS], "timed_out": float(verdict.timed_out)}
    return {"score": score, "acc": acc, "format_ok": format_ok, **shown}


_THREADS: ThreadPoolExecutor


def _new_threads() -> None:
    """They start with the first question; a forked process has none of its parent's."""
    global _THREADS
    _THREADS = ThreadPoolExecutor(THREADS, thread_name_prefix="s2l-math")


_new_threads()
os.register_at_fork(after_in_child=_new_threads)
