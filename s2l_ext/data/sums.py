"""Sums and short word problems with worked traces: what a small language model solves sometimes.

``What is 4 + 8?`` has the trace ``4 + 8 = 12. The answer is 12.`` Which split a problem belongs to is a hash of
its text, so splits are disjoint whatever the seeds and sizes. Numbers are worked from left to right.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any, NamedTuple

from s2l_ext.data.converting import digest, index_of, user_prompt
from s2l_ext.errors import DataError
from s2l_ext.toy.tasks import MAX_DRAWS_PER_PROBLEM
from s2l_ext.utils.files import replacing, writable

DATA_SOURCE = "sums"
VAL_BUCKETS = 5
"""One problem in so many belongs to val."""
NAMES = ("Anna", "Ben", "Mia", "Tom")


DIGIT = (2, 9)
"""Smallest and largest value of a number."""
KINDS = {
    "sum": ("What is {0} + {1}?", "+"),
    "product": ("What is {0} * {1}?", "*"),
    "short sum": ("What is {0} + {1}? Answer with a number.", "+"),
    "short product": ("What is {0} * {1}? Answer with a number.", "*"),
    "bought": ("{name} has {0} apples. {name} buys {1} more apples. How many apples does {name} have now?", "+"),
}
"""By tier: the question (``{0}``, ``{1}``, ... are its numbers), and of ``+-*`` one between each two numbers."""


class Problem(NamedTuple):
    """A question with its tier, its steps written out, and its answer."""

    question: str
    tier: str
    trace: str
    answer: int


def worked(numbers: list[int], operators: str) -> tuple[str, int]:
    """The trace and the value of numbers worked from left to right."""
    value, steps = numbers[0], []
    for operator, number in zip(operators, numbers[1:], strict=True):
        result = {"+": value + number, "-": value - number, "*": value * number}[operator]
        steps.append(f"{value} {operator} {number} = {result}.")
        value = result
    return f"{' '.join(steps)} The answer is {value}.", value


def draw(rng: random.Random, tier: str) -> Problem:
    text, operators = KINDS[tier]
    numbers = [rng.randint(*DIGIT) for _ in range(len(operators) + 1)]
    question = text.format(*numbers, name=rng.choice(NAMES))
    return Problem(question, tier, *worked(numbers, operators))


def split_of(question: str) -> str:
    return "val" if index_of(question) % VAL_BUCKETS == 0 else "train"


def sample(split: str, count: int, seed: int) -> list[Problem]:
    """Different problems of one split, tiers in turn; the same ones for the same seed."""
    if count < 1:
        raise DataError(f"--{split} {count} must be at least 1.")
    rng, tiers, found = random.Random(f"{seed}/{split}"), list(KINDS), dict[str, Problem]()
    for _ in range(count * MAX_DRAWS_PER_PROBLEM):
        problem = draw(rng, tiers[len(found) % len(tiers)])
        if split_of(problem.question) == split:
            found.setdefault(problem.question, problem)
        if len(found) == count:
            return list(found.values())
    raise DataError(f"--{split} {count}: only {len(found)} different problems were found. Ask for fewer.")


def write_files(out: Path, rows: dict[str, int], seed: int) -> dict[str, Path]:
    """``out/<split>.parquet`` for each split of ``rows``, which gives its number of problems; all are checked before a
    file is written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    problems = {split: sample(split, count, seed) for split, count in rows.items()}
    files = {split: out / f"{split}.parquet" for split in problems}
    with writable(out, "Choose another --out."):
        out.mkdir(parents=True, exist_ok=True)
        for split, path in files.items():
            with replacing(path) as partial:
                pq.write_table(pa.Table.from_pylist([to_row(each, split) for each in problems[split]]), partial)
    return files


def to_row(problem: Problem, split: str) -> dict[str, Any]:
    """One row in verl's layout; the trace and the id are in ``extra_info``."""
    identity = {"index": index_of(problem.question), "id": digest(problem.question)[:16], "split": split}
    return {
        "data_source": DATA_SOURCE,
        "prompt": user_prompt(problem.question, ""),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(problem.answer)},
        "extra_info": {**identity, "trace": problem.trace},
        "tier": problem.tier,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``s2l data sums``."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for train and val.parquet")
    parser.add_argument("--train", type=int, default=128, metavar="N", help="to train on (default %(default)s)")
    parser.add_argument("--val", type=int, default=40, metavar="N", help="held-out problems (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw; splits are always disjoint (default 0)")


def main(args: argparse.Namespace) -> None:
    rows = {"train": args.train, "val": args.val}
    for split, path in write_files(args.out, rows, args.seed).items():
        print(f"{path}: {rows[split]} problems with traces")
