"""The explorer starts beside the learner, but not before the learner is placed."""

import threading
from concurrent.futures import CancelledError

import pytest

from s2l_ext.methods.explorer.serving.lifecycle import EarlyStart

pytestmark = pytest.mark.timeout(60)  # a start that nobody waits for would hang


def test_it_waits_until_the_learner_is_placed_and_runs_beside_it() -> None:
    placed, asked, release = threading.Event(), threading.Event(), threading.Event()

    def look() -> bool:
        asked.set()
        return placed.is_set()

    def start() -> str:
        assert placed.is_set()
        assert release.wait(10)
        return threading.current_thread().name

    early = EarlyStart(start, look)
    assert asked.wait(10)
    placed.set()
    release.set()  # by the thread that would be busy with the learner
    assert early.result() == "early start"


def test_who_waits_for_it_is_ready_whatever_else_is_not_placed() -> None:
    assert EarlyStart(lambda: 3, lambda: False).result() == 3


def test_its_failure_is_the_callers() -> None:
    early = EarlyStart(lambda: 1 / 0, lambda: True)
    with pytest.raises(ZeroDivisionError):
        early.result()


def test_a_failed_learner_leaves_nothing_starting() -> None:
    started = threading.Event()
    early = EarlyStart(started.set, lambda: False)
    with pytest.raises(ZeroDivisionError), early:
        _ = 1 / 0
    with pytest.raises(CancelledError):
        early._outcome.result(10)
    assert not started.is_set()
