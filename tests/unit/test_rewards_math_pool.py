"""Children that judge: none hangs or ends its owner, and one that is stuck does not hold up the others."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from s2l_ext.errors import ResourceError
from s2l_ext.rewards import math as math_reward
from s2l_ext.rewards import math_helper
from s2l_ext.rewards.math import compute_score, compute_score_async, grade

pytestmark = pytest.mark.slow

TOWER = "\\boxed{9^{9^{9^9}}}"
HALF = ("\\boxed{\\frac{4}{8}+x}", "x+1/2")


def in_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(timeout=120)
    return results


@pytest.fixture
def pool(monkeypatch):
    fresh = math_helper.Pool()
    monkeypatch.setattr(math_helper, "POOL", fresh)
    with pytest.MonkeyPatch.context() as remembers_nothing:  # each question reaches the pool
        remembers_nothing.setattr(math_reward, "_known", math_reward._known.__wrapped__)
        yield fresh
    for child in fresh.children:
        child.stop()


def test_a_power_tower_in_a_thread_ends(pool):
    assert in_thread(lambda: grade(*HALF)) == [True]
    started = time.monotonic()
    assert in_thread(lambda: grade(TOWER, "72", timeout_s=2)) == [False]
    assert time.monotonic() - started < 30
    assert in_thread(lambda: grade(*HALF)) == [True]


def test_an_overrunning_child_is_replaced_and_the_next_already_starts(pool, monkeypatch):
    assert grade(*HALF, pool_size=1)
    first = pool.children[0].process
    monkeypatch.setattr(math_helper, "STUCK_SECONDS", 0.2)
    monkeypatch.setattr(math_helper, "STUCK_FACTOR", 0.0)
    assert compute_score("gsm8k", TOWER, "72", pool_size=1)["timed_out"] == 1.0
    assert first.poll() is not None
    second = pool.children[0].process
    assert second.pid != first.pid and second.poll() is None
    monkeypatch.undo()
    monkeypatch.setattr(math_helper, "POOL", pool)
    assert grade(*HALF, pool_size=1)
    assert len(pool.children) == 1


def test_a_killed_child_is_replaced(pool):
    assert grade(*HALF)
    pool.children[0].process.kill()
    pool.children[0].process.wait()
    assert grade(*HALF)


def test_one_stuck_answer_does_not_hold_up_the_others(pool):
    assert math_helper.start(2) is None
    assert [grade(*HALF, pool_size=2), len(pool.children)] == [True, 2]
    next_asked = pool._idle[-1].process
    next_asked.send_signal(signal.SIGSTOP)
    stuck = threading.Thread(target=lambda: grade(*HALF, pool_size=2))
    stuck.start()
    while len(pool._idle) == 2:
        time.sleep(0.01)
    assert grade(*HALF, pool_size=2) and grade(*HALF, pool_size=2)
    assert stuck.is_alive()
    next_asked.kill()
    stuck.join(timeout=60)
    assert not stuck.is_alive()


def test_the_pool_grows_only_when_all_are_busy_and_not_beyond_its_size(pool):
    for _ in range(3):
        assert grade(*HALF, pool_size=3)
    assert len(pool.children) == 1
    threads = [threading.Thread(target=lambda: grade(*HALF, pool_size=2)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert 1 <= len(pool.children) <= 2
    assert not any(thread.is_alive() for thread in threads)


SPINS = """
from itertools import repeat
def parse(*args, **kwargs):
    all(repeat(True))  # one call of C that sees no signal
verify = ExprExtractionConfig = LatexExtractionConfig = lambda *args, **kwargs: None
"""


@pytest.mark.slow
def test_a_child_ends_itself_when_its_owner_is_gone(tmp_path):
    """A computation in C hears neither signals nor the end of its pipe; the kernel's limit on CPU seconds ends it."""
    (tmp_path / "math_verify.py").write_text(SPINS)
    command = [sys.executable, "-m", "s2l_ext.rewards.math_child"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout.readline() == "ready\n"
    child.stdin.write(json.dumps({"text": "x", "gold": "y", "whole": False, "seconds": 0.1}) + "\n")
    child.stdin.close()
    assert child.wait(timeout=180) == -signal.SIGXCPU
    child.stdout.close()


def test_a_child_that_cannot_start_is_an_error_not_a_wrong_answer(pool, monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ResourceError, match=r"did not start \(ImportError: broken on purpose\)\. Is math-verify"):
        grade(*HALF)
    monkeypatch.setattr(math_helper.sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(ResourceError, match="cannot be started"):
        grade(*HALF)


def _grade_in_child(queue):
    queue.put((len(math_helper.POOL.children), grade(*HALF)))


def test_a_forked_process_has_a_pool_of_its_own(pool):
    assert grade(*HALF)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_grade_in_child, args=(queue,))
    process.start()
    assert queue.get(timeout=120) == (0, True)
    process.join(timeout=60)
    assert grade(*HALF)
    assert len(pool.children) == 1


def test_many_descriptors_do_not_stop_it(pool):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1300:
        pytest.skip(f"only {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert grade(*HALF)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_event_loop_goes_on_while_an_answer_is_stuck(pool):
    async def run():
        stuck = asyncio.create_task(compute_score_async("gsm8k", TOWER, "72", timeout_s=3, pool_size=2))
        started = time.monotonic()
        quick = await compute_score_async("gsm8k", "\\boxed{\\frac{1}{2}}", "0.5")
        waited = time.monotonic() - started
        asked = await compute_score_async("gsm8k", *HALF, pool_size=2)
        return waited, quick["acc"], asked["acc"], (await stuck)["acc"]

    math_helper.start(2)
    waited, quick, asked, tower = asyncio.run(run())
    assert waited < 1.0
    assert (quick, asked, tower) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{10^{10^{10}}}",
        "\\boxed{" + "\\sqrt{1+" * 150 + "2" + "}" * 151,
        "9" * 10**6,
        "\\boxed{" + "(" * 10**6 + "}",
        "\\boxed{100000000!}",
        "\\frac{" * 600,
        "}{" * 10**5,
        "10^10^10",
    ],
)
def test_hostile_answers_end_in_time(text):
    started = time.monotonic()
    assert not grade(text, "72", timeout_s=3)
    assert time.monotonic() - started < 3 + 30


def test_a_gold_of_a_megabyte_ends_in_time(pool):
    started = time.monotonic()
    assert not grade("\\boxed{x+1}", "x" * 10**6, timeout_s=2)
    assert time.monotonic() - started < 2 + 30


def test_a_busy_machine_changes_no_verdict(pool):
    """The limit counts the child's own CPU seconds: a child that gets no CPU for twice its limit still answers."""
    assert grade(*HALF, pool_size=1)
    child = pool.children[0].process
    child.send_signal(signal.SIGSTOP)
    threading.Timer(2.0, child.send_signal, [signal.SIGCONT]).start()
    started = time.monotonic()
    found = compute_score("gsm8k", "\\boxed{\\frac{5}{10}+y}", "y+1/2", timeout_s=1, pool_size=1)
    assert time.monotonic() - started > 1.5
    assert (found["acc"], found["timed_out"]) == (1.0, 0.0)
    assert pool.children[0].process is child


def test_a_verdict_that_runs_out_of_cpu_seconds_says_so(pool):
    found = compute_score("gsm8k", TOWER, "72", timeout_s=1)
    assert (found["score"], found["acc"], found["format_ok"], found["timed_out"]) == (0.0, 0.0, 1.0, 1.0)
    assert compute_score("gsm8k", "\\boxed{\\frac{4}{9}+x}", "x+1/2", timeout_s=1)["timed_out"] == 0.0


def test_an_answer_and_a_gold_in_time_leave_no_limit_behind(pool):
    for _ in range(2):
        assert grade(*HALF, timeout_s=1, pool_size=1)
        time.sleep(1.2)
    assert len(pool.children) == 1


def test_an_answer_that_was_judged_is_not_judged_again_and_one_without_a_verdict_is(monkeypatch):
    asked, compare = [], math_helper.compare

    def counted(text, gold, *rest, **options):
        asked.append((text, gold))
        return compare(text, gold, *rest, **options)

    monkeypatch.setattr(math_helper, "compare", counted)
    math_reward._known.cache_clear()
    same = [grade(f"{working} \\boxed{{(x+3)^2}}", "x^2+6x+9") for working in ("First", "Then", "So")]
    assert (same, len(asked)) == ([True] * 3, 1)
    assert not grade("\\boxed{(x+3)^2}", "x^2+6x+8") and grade("\\boxed{(y+3)^2}", "x^2+6x+9", strict=False)
    assert len(asked) == 3
    late = [compute_score("gsm8k", TOWER, "72", timeout_s=1)["timed_out"] for _ in range(2)]
    assert (late, len(asked)) == ([1.0, 1.0], 5)
