"""The sandbox under load: hostile and honest programs at once while its zygotes are killed; never a wrong verdict."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from s2l_ext.errors import ResourceError
from s2l_ext.rewards.code import Outcome, run_tests
from s2l_ext.sandbox.runner import Level, Sandbox, SandboxUnavailable

pytestmark = pytest.mark.slow

TESTS = "assert f(3) == 9\nassert f(-2) == 4"
PROGRAMS = {
    "right": ("def f(x):\n    return x * x", True),
    "wrong": ("def f(x):\n    return x + 5", False),
    "endless": ("def f(x):\n    while True:\n        pass", False),
    "memory": ("def f(x):\n    return len([bytearray(2**20) for _ in range(4096)])", False),
    "forks": ("import os\ndef f(x):\n    while True:\n        os.fork()", False),
    "flood": ("def f(x):\n    while True:\n        print('x' * 65536)", False),
    "exits": ("import os\ndef f(x):\n    os._exit(0)", False),
    "leaves": ("def f(x):\n    raise SystemExit", False),
}
ROUNDS, THREADS, KILLS, TIMEOUT_S = 12, 12, 8, 0.7


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest.fixture
def others() -> set[psutil.Process]:
    """Pools that earlier tests of this process keep for its life."""
    return children()


@pytest.fixture
def pool():
    try:
        made = Sandbox(workers=2)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    yield made
    made.close()


def judged(pool: Sandbox, name: str) -> Outcome | ResourceError:
    timeout = 20.0 if name in ("right", "wrong") else TIMEOUT_S
    try:
        return run_tests(PROGRAMS[name][0], TESTS, timeout, pool=pool, minimum_level=Level.LIMITS)
    except ResourceError as error:
        return error


def kill_zygotes(done: threading.Event, struck: list[int]) -> None:
    """SIGKILL children of this process, which are the pool's, now and then."""
    chance = random.Random(1)
    while len(struck) < KILLS and not done.is_set():
        time.sleep(chance.uniform(0.05, 0.4))
        with contextlib.suppress(IndexError, psutil.NoSuchProcess):
            victim = chance.choice(psutil.Process().children())
            victim.kill()
            struck.append(victim.pid)


def test_no_wrong_verdict_while_zygotes_are_killed(pool) -> None:
    names = [name for _ in range(ROUNDS) for name in PROGRAMS]
    random.Random(2).shuffle(names)
    done, struck = threading.Event(), []
    killer = threading.Thread(target=kill_zygotes, args=(done, struck))
    killer.start()
    with ThreadPoolExecutor(THREADS) as threads:
        outcomes = list(threads.map(lambda name: judged(pool, name), names))
    done.set()
    killer.join()
    told = [(name, outcome) for name, outcome in zip(names, outcomes, strict=True) if isinstance(outcome, Outcome)]
    assert struck and len(told) >= len(names) - len(struck), "a job is lost only when its zygote was killed twice"
    assert [name for name, outcome in told if outcome.passed != PROGRAMS[name][1]] == []
    assert judged(pool, "right").passed and not judged(pool, "wrong").passed


def test_nothing_is_left_after_the_load(others, pool) -> None:
    me = psutil.Process()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda name: judged(pool, name), [*PROGRAMS] * 3))
    handles = me.num_fds()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda name: judged(pool, name), [*PROGRAMS] * 3))
    assert me.num_fds() <= handles + 2
    assert children() - others, "the pool has processes while it is open"
    pool.close()
    deadline = time.monotonic() + 20
    while children() - others and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [one for one in children() - others if one.status() != psutil.STATUS_ZOMBIE] == []
