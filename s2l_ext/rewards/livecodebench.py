"""LiveCodeBench's way to judge a program: common imports before it, and a time limit for every test of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from s2l_ext.errors import DataError
from s2l_ext.rewards import code, parts
from s2l_ext.rewards.code_blocks import extract_program, join_sources
from s2l_ext.rewards.code_tests import parse_tests, read_pairs
from s2l_ext.sandbox.runner import Level

TIMEOUT_S = 6.0
"""Seconds for one test (lcb_runner/evaluation/testing_util.py)."""
MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json"),
)
PREAMBLE = (
    "".join(f"from {name} import *\n" for name in (*MODULES, "builtins", "typing"))
    + "".join(f"import {name}\n" for name in MODULES)
    + "sys.setrecursionlimit(50000)\n"
)
"""LeetCode and AtCoder programs take these names for granted, ``List`` above all."""
CALL = """import json
try:
    called = Solution().{name}
except NameError:
    called = {name}
found = called(*json.loads({given!r}))
assert (list(found) if isinstance(found, tuple) else found) == json.loads({wanted!r})
"""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    *,
    thinking: str = "auto",
    timeout_s: float = TIMEOUT_S,
    minimum_level: str | int | Level | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """verl's ``custom_reward_function`` (path ``pkg://s2l_ext.rewards.livecodebench``). Ends at the first failed test;
    ``timeout_s`` is for each test.

    The truth is JSON or a mapping with ``inputs`` and ``outputs``; with ``fn_name`` they are JSON arguments (one a
    line) and results of that function or method of ``Solution``, else standard input and output. Returns what
    ``s2l_ext.rewards.code.compute_score`` does; ``tests_passed`` counts those before the first failure.
    """
    parts.refuse_keywords(kwargs, "livecodebench", "thinking, timeout_s, minimum_level")
    try:
        tests = list(separate_tests(ground_truth))
    except DataError as error:
        raise DataError(f"{data_source} {(extra_info or {}).get('id', '')}: {error}") from error
    program, marked = extract_program(parts.said(solution_str, thinking), parse_tests(tests[0]))
    right, reason = 0, ""
    for number, test in enumerate(tests, 1):
        outcome = code.run_tests(join_sources(PREAMBLE, program), test, timeout_s, minimum_level=minimum_level)
        if not outcome.passed:
            reason = f"test {number} of {len(tests)}: {outcome.reason.removeprefix('test 1 of 1: ')}"
            break
        right += 1
    score, counts = float(right == len(tests)), {"tests_passed": right, "tests_total": len(tests)}
    shown = {"reason": reason[: code.SHOWN_CHARS]}
    return {"score": score, "acc": score, "format_ok": float(marked), **counts, **shown}


def separate_tests(truth: Any) -> Iterator[str]:
    """Each test alone, as :func:`s2l_ext.rewards.code.run_tests` reads it. Raises DataError for malformed tests."""
    pairs, name = read_pairs(truth)
    for number, (given, wanted) in enumerate(pairs, 1):
        if not isinstance(given, str) or not isinstance(wanted, str):
            raise DataError(f"input and output of test {number} must be text")
        if not name:
            yield json.dumps([{"input": given, "output": wanted}])
            continue
        arguments = [_loaded(line, f"input of test {number}") for line in given.splitlines()]
        result = _loaded(wanted, f"output of test {number}")
        yield CALL.format(name=name, given=json.dumps(arguments), wanted=json.dumps(result))


def _loaded(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON ({error})") from error
