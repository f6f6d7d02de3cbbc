r"""CPU seconds a verdict of the mathematical reward costs, child processes included, beside math-verify alone.

    python benchmarks/judge_throughput.py [--rows 200]
    python benchmarks/judge_throughput.py --processes 1 2 8        (a paper's step: 16,384 responses of 4,096 tokens)

Each case is made of ``rows`` responses with distinct working, of 8,000 to 32,000 characters (about 2k to 8k tokens) or
short, whose answers are right, right in another spelling, or wrong. In a group eight responses answer one problem.
math-verify judges as verl's own ``math_verify`` score does: gold and whole response are parsed for every verdict, with
its default settings. Exit 1 when the reward needs more CPU than math-verify in a case, or a verdict differs.

With --processes the reward alone judges a step's responses, groups of 16 of every long kind, shared out over so many
processes as over verl's reward workers. One JSON object a number of processes; ``load`` is the machine's, before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

from s2l_ext.rewards import math_helper
from s2l_ext.rewards.math import compute_score
from s2l_ext.rewards.math_child import fix_percent

LONG, SHORT = (8_000, 32_000), (100, 400)
WORKING = (
    "We have $x^2 + {a}x = {b}$, so $x = \\frac{{{a}}}{{{b}}}$.",
    "Then \\( {a} - {b} = {c} \\), which makes {c} in all.",
    "\\[ \\sum_{{k=1}}^{{{a}}} k^2 = {b} \\]",
    "Wait, let me check this again: {a} tickets at ${b} each cost {c} dollars.",
    "**Step {a}:** Substitute the value into the equation and simplify both sides.",
)
NUMBERS = (("{a}", "{a}.0", "{b}"), ("\\frac{{{a}}}{{7}}", "{a}/7", "{a}/9"))
EXPRESSIONS = (
    ("\\frac{{{a}\\pi}}{{3}}", "{a}\\pi/3", "\\frac{{{a}\\pi}}{{6}}"),
    ("x^2+{a}x", "x(x+{a})", "x^2-{a}x"),
    ("{a}\\sqrt{{3}}", "\\sqrt{{3}} \\cdot {a}", "{a}\\sqrt{{2}}"),
    ("[{a}, \\infty)", "\\left[{a},\\infty\\right)", "({a}, \\infty)"),
    ("{a}, -{a}", "-{a} \\text{{ and }} {a}", "{a}, {b}"),
    ("y = {a}x + {b}", "{a}x + {b} = y", "y = {a}x - {b}"),
    ("{a} + {b}i", "{b}i + {a}", "{a} - {b}i"),
    ("\\text{{Ann}}", "\\text{{Ann}}", "\\text{{Bob}}"),
)
LISTS = (
    ("{a}x, {b}x, {c}x, \\sqrt{{{a}}}", "\\sqrt{{{a}}}, {c}x, {b}x, {a}x", "\\sqrt{{{a}}}, {c}x, {b}x, {a}y"),
    ("x = {a}, y = {b}, z = \\frac{{{c}}}{{7}}", "z = {c}/7, y = {b}, x = {a}", "x = {a}, y = {b}, z = {c}"),
)
BOXED, SAID = "Therefore the answer is $\\boxed{{{0}}}$.", "So the result is ${0}$."

Case = tuple[tuple[int, int], tuple[tuple[str, str, str], ...], str, int]
"""Characters of working; gold, the same in another spelling and a wrong answer; the end; responses to one problem."""


CASES = {
    "long, boxed expression": (LONG, EXPRESSIONS, BOXED, 1),
    "long, boxed expression, groups of 8": (LONG, EXPRESSIONS, BOXED, 8),
    "long, answer line": (LONG, EXPRESSIONS, "Answer: ${0}$", 1),
    "long, unboxed number": (LONG, NUMBERS, "So the total is {0}", 1),
    "long, unboxed expression": (LONG, EXPRESSIONS, SAID, 1),
    "long, unboxed expression, groups of 8": (LONG, EXPRESSIONS, SAID, 8),
    "long, boxed list": (LONG, LISTS, BOXED, 1),
    "long, unboxed number in a sentence": (LONG, NUMBERS, "So she has {0} apples left.", 1),
    "long, cut short": (LONG, EXPRESSIONS, "Now let us consider", 1),
    "short, boxed number": (SHORT, NUMBERS, BOXED, 1),
    "short, boxed expression": (SHORT, EXPRESSIONS, BOXED, 1),
    "short, boxed expression, groups of 8": (SHORT, EXPRESSIONS, BOXED, 8),
    "short, unboxed expression": (SHORT, EXPRESSIONS, SAID, 1),
}


def rows(case: Case, count: int, seed: str) -> Iterator[tuple[str, str]]:
    length, answers, end, group = case
    rng = random.Random(seed)
    for index in range(count):
        if index % group == 0:
            values = {name: rng.randrange(2, 10_000) for name in "abc"}
            gold, *others = (each.format(**values) for each in rng.choice(answers))
        yield _working(rng, length) + end.format(rng.choice((gold, *others))), gold


def _working(rng: random.Random, length: tuple[int, int]) -> str:
    size, said = rng.randrange(*length), ""
    while len(said) < size:
        values = {name: rng.randrange(2, 1000) for name in "abc"}
        said += rng.choice(WORKING).format(**values) + rng.choice((" ", "\n", "\n\n"))
    return said


def alone(response: str, gold: str) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(f"\\boxed{{{gold}}}"), parse(response)))


def ours(response: str, gold: str) -> bool:
    return bool(compute_score("math", response, gold)["acc"])


def seconds() -> float:
    """CPU seconds of this process and of the children that judge."""
    children = [(~child.process.pid << 3) | 2 for child in math_helper.POOL.children]  # Linux: a process's CPU clock
    return time.process_time() + sum(map(time.clock_gettime, children))


def cost(judge: Callable[[str, str], bool], given: list[tuple[str, str]]) -> tuple[float, list[bool]]:
    """CPU milliseconds a verdict, and the verdicts."""
    before = seconds()
    verdicts = [judge(*row) for row in given]
    return 1000 * (seconds() - before) / len(given), verdicts


STEP_ROWS, GROUP, CHARS = 16_384, 16, 4 * 4096
LONG_CASES = [case for name, case in CASES.items() if name.startswith("long") and "groups" not in name]


def step_rows(count: int) -> list[tuple[str, str]]:
    cases = [((CHARS, CHARS + 1), answers, end, GROUP) for _, answers, end, _ in LONG_CASES]
    share = -(-count // len(cases) // GROUP) * GROUP
    return [row for number, case in enumerate(cases) for row in rows(case, share, f"step {number}")][:count]


def judged(given: list[tuple[str, str]]) -> tuple[float, int]:
    """CPU milliseconds a verdict in this process, and right answers."""
    spent, verdicts = cost(ours, given)
    return spent, sum(verdicts)


def step(processes: int, count: int) -> dict[str, float | int]:
    given, load = step_rows(count), os.getloadavg()[0]
    groups = [given[at : at + GROUP] for at in range(0, len(given), GROUP)]
    parts = [[row for group in groups[number::processes] for row in group] for number in range(processes)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(judged, [part[:GROUP] for part in parts]))
        start = time.perf_counter()
        found = list(pool.map(judged, parts))
        taken = time.perf_counter() - start
    spent = sum(each * len(part) for (each, _), part in zip(found, parts, strict=True)) / 1000
    right = sum(number for _, number in found)
    return {"processes": processes, "rows": count, "seconds": taken, "cpu_seconds": spent, "right": right, "load": load}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--processes", type=int, nargs="+", help="a step's responses over so many processes")
    parser.add_argument("--step-rows", type=int, default=STEP_ROWS)
    arguments = parser.parse_args()
    if arguments.processes:
        for processes in arguments.processes:
            print(json.dumps(step(processes, arguments.step_rows)), flush=True)
        return 0
    fix_percent()
    good = True
    for name, case in CASES.items():
        given = list(rows(case, arguments.rows, name))
        for judge in (alone, ours):
            cost(judge, list(rows(case, 20, "warm-up")))
        (plain, first), (spent, second) = cost(alone, given), cost(ours, given)
        same = sum(one == other for one, other in zip(first, second, strict=True))
        good = good and spent <= plain and same == len(given)
        print(f"{name}: math-verify {plain:.2f} ms, the reward {spent:.2f} ms, {spent / plain:.2f} times; {same} same")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
