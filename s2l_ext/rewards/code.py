"""Does a program pass its tests? The program runs in the sandbox; tests and expected outputs stay out of its reach.

Tests written in Python run in a second confined process that sees only plain values which the program returned;
tests of standard input and output are compared here. docs/sandbox.md describes the protocol and what it leaves open.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.rewards import parts
from s2l_ext.rewards.code_blocks import extract_program, join_sources
from s2l_ext.rewards.code_tests import FunctionTests, InputOutput, Tests, compare_output, parse_tests
from s2l_ext.sandbox import runner as sandbox
from s2l_ext.sandbox.runner import Finished, Level, Limits

TIMEOUT_S = 10.0
SHOWN_CHARS = 200
MODES = ("all_pass", "fraction")


@dataclass(frozen=True)
class Outcome:
    """What became of a program: ``passed`` when every test passed and at least one ran; tests are assertions or
    input/output pairs. ``reason`` is the first failure; ``stdout`` and ``stderr`` are the last 4000 characters;
    ``seconds`` is wall time inside the sandbox.
    """

    passed: bool
    num_passed: int
    num_total: int
    reason: str
    stdout: str
    stderr: str
    seconds: float
    level: str

    @property
    def fraction(self) -> float:
        return self.num_passed / max(1, self.num_total)


def run_tests(
    program: str,
    tests: str,
    timeout_s: float,
    *,
    entry_point: str | None = None,
    prompt: str = "",
    stop_early: bool = False,
    minimum_level: str | int | Level | None = None,
    limits: Limits | None = None,
    pool: sandbox.Sandbox | None = None,
) -> Outcome:
    """Run ``program`` against ``tests``.

    Args:
        tests: Python source with assertions, or JSON of input/output pairs (:func:`parse_tests` lists the forms).
        timeout_s: wall seconds for all assertions together, or for each input/output pair.
        entry_point: name of the function that ``check(candidate)`` of the tests is called with.
        prompt: trusted source that the tests may use (imports, helper functions). Without it such names come from the
            program, which may then define them to its advantage.
        stop_early: end at the first failure; the counts are then lower bounds.

    Raises:
        DataError: the tests are malformed.
        ConfigError: ``timeout_s`` is not positive.
        SandboxUnavailable: there is no sandbox of at least the minimum level.
    """
    if not timeout_s > 0:
        raise ConfigError(f"timeout_s={timeout_s} must be positive seconds")
    parsed = parse_tests(tests, entry_point, prompt)
    return _run(program, parsed, timeout_s, stop_early, minimum_level, limits, pool)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    *,
    mode: str = "all_pass",
    thinking: str = "auto",
    timeout_s: float = TIMEOUT_S,
    minimum_level: str | int | Level | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """verl's ``custom_reward_function`` (path ``pkg://s2l_ext.rewards.code``).

    Args:
        ground_truth: a JSON object or mapping with ``test``, ``entry_point`` and ``prompt`` (HumanEval), or
            input/output pairs, or plain assertions; see docs/sandbox.md.
        mode: ``all_pass`` (score 1.0 or 0.0) or ``fraction`` (share of tests passed).
        thinking: as in the mathematical reward; a draft in the thinking is no program.

    Returns:
        ``score``; ``acc`` (1.0 only if every test passed); ``format_ok`` (1.0 when the program was in a fenced block);
        ``tests_passed``, ``tests_total``; ``reason`` (the first failure, cut to 200 characters).

    Raises:
        DataError: malformed tests; names the row.
        ConfigError: an argument is out of range, or unknown.
        SandboxUnavailable: there is no sandbox of at least the minimum level.
    """
    parts.refuse_keywords(kwargs, "code", "mode, thinking, timeout_s, minimum_level")
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r} of the code reward must be one of {', '.join(MODES)}")
    try:
        parsed = parse_tests(ground_truth)
        code, marked = extract_program(parts.said(solution_str, thinking), parsed)
        outcome = _run(complete_program(code, parsed), parsed, timeout_s, mode == "all_pass", minimum_level)
    except DataError as error:
        known = extra_info or {}
        named = [f"{key} {known[key]}" for key in ("id", "task_id", "index") if known.get(key) is not None]
        row = f"code tests of {data_source} ({', '.join(named) or 'row without id or index'})"
        raise DataError(f"{row}: {error}") from error
    return {
        "score": float(outcome.passed) if mode == "all_pass" else outcome.fraction,
        "acc": float(outcome.passed),
        "format_ok": float(marked),
        "tests_passed": outcome.num_passed,
        "tests_total": outcome.num_total,
        "reason": outcome.reason[:SHOWN_CHARS],
    }


def complete_program(code: str, tests: Tests) -> str:
    """The program to run: after the prompt, as the body of its last function when ``code`` is only that."""
    if not isinstance(tests, FunctionTests) or not tests.prompt:
        return code
    name = re.escape(tests.entry_point or "")
    whole = re.search(rf"^(?:def\s+|async\s+def\s+|class\s+)?{name}\b", code, re.MULTILINE)
    return join_sources(f"{tests.prompt}\n", code) if whole or not name else tests.prompt + code


def _run(
    program: str,
    tests: Tests,
    timeout_s: float,
    stop_early: bool,
    minimum_level: str | int | Level | None,
    limits: Limits | None = None,
    pool: sandbox.Sandbox | None = None,
) -> Outcome:
    pool = pool or sandbox.default()
    pool.require(sandbox.minimum_level(minimum_level))
    if isinstance(tests, FunctionTests):
        job = {**vars(tests), "stop_early": stop_early}
        passed, counts, reason, finished = _judged(pool.run(program, job, timeout_s, limits))
    else:
        scripts = (pool.run(program, given, timeout_s, _with_room(limits, wanted)) for given, wanted in tests.pairs)
        passed, counts, reason, finished = _compared(scripts, tests, stop_early)
    return Outcome(
        passed=passed,
        num_passed=counts[0],
        num_total=counts[1],
        reason=reason.encode(errors="replace").decode(),
        stdout=finished.stdout[-4000:],
        stderr=finished.stderr,
        seconds=finished.seconds,
        level=pool.level.name.lower(),
    )


def _with_room(limits: Limits | None, expected: str) -> Limits:
    """``limits`` under which the expected output fits, twice."""
    limits = limits or Limits()
    return replace(limits, output_bytes=max(limits.output_bytes, 2 * len(expected.encode(errors="replace")) + 2**16))


Verdict = tuple[bool, tuple[int, int], str, Finished]
"""Whether all passed, how many of how many, the first failure, and what the program left."""


def _judged(finished: Finished) -> Verdict:
    verdict = finished.verdict
    if "malformed" in verdict:
        raise DataError(verdict["malformed"])
    passed = bool(verdict.get("passed")) and not finished.reason
    right = 0 if finished.reason else int(verdict.get("num_passed", 0))  # cut short, or beyond a limit: nothing counts
    reason = "" if passed else finished.reason or verdict.get("reason", "the judge ended without a verdict")
    return passed, (right, int(verdict.get("num_total", 1))), reason, finished


def _compared(scripts: Iterator[Finished], tests: InputOutput, stop_early: bool) -> Verdict:
    """Each pair's script is run when its turn comes."""
    right, first, seconds = 0, "", 0.0
    finished = Finished()
    for number, (finished, (_, expected)) in enumerate(zip(scripts, tests.pairs, strict=True), 1):
        seconds += finished.seconds
        wrong = finished.reason or _exit_reason(finished) or compare_output(finished.stdout, expected)
        right += not wrong
        if wrong:
            first = first or f"test {number} of {len(tests.pairs)}: {wrong}"
            if stop_early:
                break
    return not first, (right, len(tests.pairs)), first, replace(finished, seconds=seconds)


def _exit_reason(finished: Finished) -> str:
    if not finished.status:
        return ""
    last = finished.stderr.strip().splitlines()[-1:] or ["no message"]
    return f"the program ended with status {finished.status >> 8 or -(finished.status & 0x7F)}: {last[0][:SHOWN_CHARS]}"
