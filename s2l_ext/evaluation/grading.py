"""Grading a response with the reward that training uses: verl's ``custom_reward_function`` call."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from s2l_ext.data.values import answer_text
from s2l_ext.errors import ConfigError, DataError, S2LError
from s2l_ext.evaluation.benchmarks import Problem
from s2l_ext.rewards import registry
from s2l_ext.rewards.extraction import marked_answer, outside_thinking
from s2l_ext.rewards.registry import place_of
from s2l_ext.training.judges import compares_with_one_text
from s2l_ext.utils.digests import sha256_file
from s2l_ext.utils.sources import user_source

TOY, MATH, CODE = (f"s2l_ext.rewards.{name}:compute_score" for name in ("toy", "math", "code"))
BY_DATA_SOURCE = (
    ("toy_chain", TOY),
    ("gsm8k", MATH),
    ("openr1", MATH),
    ("s1k", MATH),
    ("math", MATH),
    ("aime", MATH),
    ("humaneval", CODE),
)
"""Beginnings of verl's ``data_source``, looked at before ``ability``."""
BY_ABILITY = {"math": MATH, "code": CODE}

Reward = Callable[..., Any]


@dataclass(frozen=True)
class Grade:
    """``correct``: full marks (``acc``, else the score, is at least 1); ``answer`` is what a vote counts.

    ``timed_out``: the reward says that it ran out of time, so it is not correct for want of a verdict.
    """

    score: float
    correct: bool
    answer: str | None
    timed_out: bool = False


def reward_name(problem: Problem, chosen: str | None = None) -> str:
    """The reward of a problem: a registered name, or a place as :func:`registry.load` takes it. Raises DataError:
    nothing was chosen and the data source is not known."""
    known = (name for start, name in BY_DATA_SOURCE if problem.data_source.lower().startswith(start))
    name = chosen or problem.reward or next(known, None) or BY_ABILITY.get(problem.ability)
    if name is None:
        raise DataError(
            f"{problem.where}: no reward is known for data_source '{problem.data_source}' (ability "
            f"'{problem.ability}'). Choose one: --reward {MATH}"
        )
    return name


def rewarded(problems: Sequence[Problem], chosen: str | None = None) -> dict[str, Problem]:
    """Problems by id, each with the name of its ``reward``. Raises DataError: a reward is not known, or a ground truth
    is no answer.

    A reward that compares with one text gets one: numbers in exact digits, a list of one as its item.
    """
    names = {problem.id: reward_name(problem, chosen) for problem in problems}
    one = {name: compares_with_one_text(place_of(name)) for name in set(names.values())}
    found = {}
    for problem in problems:
        name, truth = names[problem.id], problem.ground_truth
        if one[name] and not isinstance(truth, str):
            truth = answer_text(truth, problem.where, "column 'reward_model.ground_truth'")
        found[problem.id] = replace(problem, reward=name, ground_truth=truth)
    return found


def load_reward(name: str) -> Reward:
    """The function that :func:`registry.load` knows by ``name``. Raises DataError when there is none to call."""
    try:
        found = registry.load(name)
    except ConfigError as error:
        raise DataError(f"--reward {name}: {error}") from error
    if inspect.iscoroutinefunction(found):
        raise DataError(f"--reward {name}: a coroutine function; evaluation calls plain functions.")
    return found


def name_and_source(name: str) -> str:
    """What a grade depends on: a reward's name and, unless it is this package's own, the digest of its file."""
    file = user_source(place_of(name))
    return f"{name} (sha256 {sha256_file(Path(file).expanduser())[:16]})" if file else name


def grade(reward: Reward, problem: Problem, text: str) -> Grade:
    """Call ``reward`` as verl does. Raises DataError: it raised, or its score or ``acc`` cannot be used."""
    name = f"{getattr(reward, '__module__', '?')}:{getattr(reward, '__name__', reward)}"
    try:
        result = reward(
            data_source=problem.data_source,
            solution_str=text,
            ground_truth=problem.ground_truth,
            extra_info=problem.extra_info,
        )
        values = result if isinstance(result, dict) else {"score": result}
        score = float(values["score"])
        acc = None if values.get("acc") is None else float(values["acc"])
    except S2LError:
        raise
    except Exception as error:
        raise DataError(f"{problem.where}: the reward {name} failed ({type(error).__name__}: {error}).") from error
    if not math.isfinite(score) or not 0.0 <= (acc or 0.0) <= 1.0:
        raise DataError(
            f"{problem.where}: the reward {name} returned score={score}, acc={acc}: expected a finite score and, as "
            "'acc', correctness in [0, 1]. Return a shaped reward as 'score', and 0.0 where nothing can be judged."
        )
    answer = values["extracted"] if "extracted" in values else _answer(text, values, problem)
    timed_out = bool(values.get("timed_out"))
    correct = (score if acc is None else acc) >= 1.0
    return Grade(score, correct, " ".join(str(answer).split()) if answer else None, timed_out)


def _answer(text: str, values: dict[str, Any], problem: Problem) -> str | None:
    """What a response answers to a reward that does not say it; a program has no answer to vote for."""
    program = "tests_total" in values or problem.ability == "code"
    return None if program else marked_answer(outside_thinking(text))
