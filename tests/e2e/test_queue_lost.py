"""The controller of verl's queue is killed in a run on the real stack; nothing waits for ever."""

import signal
import subprocess

import psutil
import pytest

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def ended(launch, small_run):
    run = launch("s2l_po/toy", *small_run, "s2l.explorer.mix_steps=40", "trainer.total_training_steps=40")
    run.wait_for(lambda: 1 in run.steps())
    family = psutil.Process(run.process.pid).children(recursive=True)
    (controller,) = [one for one in family if "ray::TransferQueueController" in " ".join(one.cmdline())]
    controller.send_signal(signal.SIGKILL)
    try:
        run.code = run.process.wait(180)
    except subprocess.TimeoutExpired:
        run.code = None
    run.end()
    return run


def test_the_run_ends_with_one_message(ended) -> None:
    assert ended.code == 2, ended.log[-6000:]
    (said,) = [line for line in ended.log.splitlines() if line.startswith("s2l: error: ")]
    assert "TransferQueue controller 0 died and is not started again" in said
    assert "The same command resumes from the last checkpoint" in said
