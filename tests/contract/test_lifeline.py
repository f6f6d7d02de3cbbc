"""A dead actor ends the trainer, also where it is blocked. Each case runs in a process of its own."""

import signal
import subprocess
import sys
from concurrent.futures import Future
from threading import Thread, Timer

import pytest

from s2l_ext.errors import S2LError
from s2l_ext.training import faults as lifeline
from s2l_ext.training.faults import ActorWatchdog

pytestmark = [pytest.mark.contract, pytest.mark.timeout(60)]


class Dead:
    restarts = 0

    def check(self) -> None:
        raise S2LError("TransferQueue controller 0 died")


class Alive(Dead):
    def check(self) -> None:
        self.restarts += 1


@pytest.fixture(autouse=True)
def soon(monkeypatch) -> None:
    monkeypatch.setattr(lifeline, "LOOK_SECONDS", 0.05)


def test_a_wait_without_a_limit_is_ended() -> None:
    """As TransferQueue's client waits: for the result of a coroutine in its own thread."""
    line, answer = ActorWatchdog(Dead(), grace_s=0.2), Future()
    late = Timer(20.0, answer.set_result, [None])
    late.start()
    with pytest.raises(S2LError, match="controller 0 died"):
        try:
            answer.result()
        finally:
            late.cancel()
            line.end()
    assert not answer.done(), "the wait was over by itself"


def test_whoever_asks_is_told_without_a_signal() -> None:
    line = ActorWatchdog(Dead(), grace_s=30.0)
    with pytest.raises(S2LError, match="controller 0 died"):
        while True:
            line.check()
    with pytest.raises(S2LError, match="controller 0 died"):
        line.end()


def test_what_others_made_of_the_error_is_not_what_the_run_ends_with() -> None:
    line = ActorWatchdog(Dead(), grace_s=0.2)
    with pytest.raises(S2LError, match="controller 0 died"):
        try:
            try:
                Future().result()
            except S2LError as error:
                raise RuntimeError("get_meta failed") from error
        finally:
            line.end()


def test_a_signal_that_comes_after_the_end_does_nothing() -> None:
    """The process would die of it with the handler that was there before."""
    line = ActorWatchdog(Dead(), grace_s=30.0)
    with pytest.raises(S2LError):
        while True:
            line.check()
    with pytest.raises(S2LError):
        line.end()
    signal.raise_signal(lifeline.SIGNAL)


def test_nothing_is_said_while_all_live() -> None:
    line, actors = ActorWatchdog(alive := Alive()), alive
    with pytest.raises(TimeoutError):
        Future().result(timeout=0.5)
    line.check()
    line.end()
    assert line.restarts == actors.restarts >= 2


def test_who_goes_on_all_the_same_is_ended() -> None:
    program = """
import time
from s2l_ext.errors import S2LError
from s2l_ext.training import faults as lifeline
lifeline.LOOK_SECONDS = 0.05
class Dead:
    def check(self): raise S2LError("the queue died")
line = lifeline.ActorWatchdog(Dead(), grace_s=0.2, last_s=0.5)
while True:
    try:
        time.sleep(60)
    except S2LError: print("swallowed", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert done.returncode == 2 and done.stdout == "swallowed\n"
    assert "s2l: error: the queue died" in done.stderr


def test_outside_the_main_thread_asking_still_works() -> None:
    said: list[BaseException] = []

    def trainer() -> None:
        line = ActorWatchdog(Dead())
        try:
            while True:
                line.check()
        except S2LError as error:
            said.append(error)
        with pytest.raises(S2LError):
            line.end()

    thread = Thread(target=trainer)
    thread.start()
    thread.join(20)
    assert "controller 0 died" in str(said[0])
