"""Chains modulo 10, evaluated left to right, with a step-by-step trace for each problem.

``5-6+4*3=?`` has the trace ``5-6=9;9+4=3;3*3=9`` and the answer ``9``. There is no operator precedence.
Which split a problem belongs to is a hash of its text, so splits are disjoint whatever the seeds and sizes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from s2l_ext.errors import DataError

MODULUS = 10
SPLITS = ("train", "val", "test")
SPLIT_SALT = b"toy-chain"
MAX_DRAWS_PER_PROBLEM = 1000
OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: (a + b) % MODULUS,
    "-": lambda a, b: (a - b) % MODULUS,
    "*": lambda a, b: (a * b) % MODULUS,
    "^": max,
}


@dataclass(frozen=True)
class Tier:
    """How hard problems are drawn: numbers of ``operations`` per chain and their ``operators``, both uniformly;
    ``required`` is an operator that occurs at least once, or "". Each of the ``chains`` of a question has its own
    answer digit.
    """

    name: str
    operations: tuple[int, ...]
    operators: str = "+-*"
    required: str = ""
    chains: int = 1


TIERS: dict[int, Tier] = {
    0: Tier("trained range", (3, 4, 5)),
    1: Tier("longer chains", (6, 7, 8)),
    2: Tier("rare operator", (3, 4, 5), operators="+-*^", required="^"),
    3: Tier("two chains", (2, 3), chains=2),
}


@dataclass(frozen=True)
class Problem:
    """A question, one string of steps per chain, and one answer digit per chain."""

    question: str
    steps: tuple[str, ...]
    answers: tuple[int, ...]

    @property
    def answer(self) -> str:
        return ",".join(str(value) for value in self.answers)

    @property
    def trace(self) -> str:
        """The careful response, without the end-of-turn token."""
        return response(",".join(self.steps), self.answer)


def response(reasoning: str, answer: str) -> str:
    return f"<think>{reasoning}</think>\\boxed{{{answer}}}"


def get_tier(number: int) -> Tier:
    """Raises DataError for a tier that does not exist."""
    if number not in TIERS:
        raise DataError(f"tier={number!r}: there is no such toy tier. Choose one of {', '.join(map(str, TIERS))}.")
    return TIERS[number]


def solve(expression: str) -> tuple[list[str], int]:
    """Steps and value of one chain such as ``5-6+4``: digits joined by operators."""
    value, steps = int(expression[0]), []
    for operator, digit in zip(expression[1::2], expression[2::2], strict=True):
        result = OPERATORS[operator](value, int(digit))
        steps.append(f"{value}{operator}{digit}={result}")
        value = result
    return steps, value


def from_question(question: str) -> Problem:
    """Work out a question as ``draw`` writes it: chains joined by commas, then ``=?``."""
    solved = [solve(chain) for chain in question.removesuffix("=?").split(",")]
    return Problem(question, tuple(";".join(steps) for steps, _ in solved), tuple(value for _, value in solved))


def draw(rng: random.Random, tier: Tier) -> Problem:
    """One problem of the tier, from any split."""
    return from_question(",".join(_draw_chain(rng, tier) for _ in range(tier.chains)) + "=?")


def _draw_chain(rng: random.Random, tier: Tier) -> str:
    operators = rng.choices(tier.operators, k=rng.choice(tier.operations))
    if tier.required and tier.required not in operators:
        operators[rng.randrange(len(operators))] = tier.required
    return str(rng.randrange(MODULUS)) + "".join(f"{operator}{rng.randrange(MODULUS)}" for operator in operators)


def problem_id(question: str) -> int:
    """A 48-bit id that depends on nothing but the question."""
    return int.from_bytes(_digest(question)[:6], "big")


def split_of(question: str) -> str:
    """80 % train, 10 % val, 10 % test, by a hash of the question."""
    bucket = int.from_bytes(_digest(question)[6:8], "big") % 10
    return "train" if bucket < 8 else SPLITS[bucket - 7]


def _digest(question: str) -> bytes:
    return hashlib.blake2b(question.encode(), digest_size=8, key=SPLIT_SALT).digest()


def stream(rng: random.Random, tier: Tier, split: str = "train") -> Iterator[Problem]:
    """Problems of one split without end; they may repeat."""
    while True:
        problem = draw(rng, tier)
        if split_of(problem.question) == split:
            yield problem


def sample(tier_number: int, split: str, count: int, seed: int) -> list[Problem]:
    """Different problems of one tier and split, the same ones for the same seed."""
    tier = get_tier(tier_number)
    if split not in SPLITS:
        raise DataError(f"split={split!r}: there is no such split. Choose one of {', '.join(SPLITS)}.")
    problems = stream(random.Random(f"{seed}/{tier_number}/{split}"), tier, split)
    found: dict[str, Problem] = {}
    for _ in range(count * MAX_DRAWS_PER_PROBLEM):
        if len(found) == count:
            break
        problem = next(problems)
        found.setdefault(problem.question, problem)
    if len(found) < count:
        raise DataError(f"count={count}: tier {tier_number} has too few different problems. Ask for fewer.")
    return list(found.values())


def data_source(tier_number: int) -> str:
    """``toy_chain`` for tier 0; harder tiers get their own, so that verl reports their accuracy apart."""
    return "toy_chain" if tier_number == 0 else f"toy_chain_tier{tier_number}"


def to_row(problem: Problem, tier_number: int, split: str) -> dict[str, Any]:
    """One row in verl's layout, with the careful response in ``extra_info.trace``.

    Not a column of its own: verl passes columns on as keyword arguments, and ``trace`` is one of its own.
    """
    identity = {"index": problem_id(problem.question), "split": split, "tier": tier_number, "trace": problem.trace}
    return {
        "data_source": data_source(tier_number),
        "prompt": [{"role": "user", "content": problem.question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": identity,
        "tier": tier_number,
    }
