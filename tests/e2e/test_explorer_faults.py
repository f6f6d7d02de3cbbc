"""The explorer fails on the real stack: its engine is killed, then stopped, and the run does what ``on_failure`` says.

Three launches. One waits through two restarts and the death of a reward worker. One ends with the first failure; the
same command goes on with another policy, loses the explorer for good and lets the learner take its place.
"""

import signal

import psutil
import pytest

from s2l_ext.methods.explorer.schedule import LinearAnnealing

pytestmark = pytest.mark.long

GROUP, PROMPTS, MIX_STEPS, TOTAL = 4, 4, 32, 24
ROWS = GROUP * PROMPTS
SLOTS = {step: LinearAnnealing(MIX_STEPS, GROUP).slots(step) for step in range(1, TOTAL + 1)}
WATCH = (
    f"s2l.explorer.mix_steps={MIX_STEPS}",
    "s2l.explorer.health_interval_s=2",
    "s2l.explorer.health_timeout_s=20",
    "s2l.explorer.request_timeout_s=120",
)


def processes(run, title: str) -> list[psutil.Process]:
    """Of this run, oldest first."""
    found = []
    for process in psutil.Process(run.process.pid).children(recursive=True):
        try:
            found += [(process.create_time(), process)] if title in " ".join(process.cmdline()) else []
        except psutil.NoSuchProcess:
            continue
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def explorers_engine(run) -> psutil.Process:
    """The engine core among the processes of the explorer's server that started last."""
    ids = run.log.rpartition("explorer replica 1000: server ")[2].splitlines()[0].partition("processes ")[2].split()
    (engine,) = [one for one in processes(run, "VLLM::EngineCore") if str(one.pid) in ids]
    return engine


def total(run, name: str) -> float:
    return sum(data[name] for data in run.steps().values())


# ---- wait ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def waited(launch, small_run):
    run = launch(
        "s2l_po/toy",
        *small_run,
        *WATCH,
        "s2l.explorer.on_failure=wait",
        "s2l.explorer.restart_backoff_s=1",
        f"trainer.total_training_steps={TOTAL}",
        "trainer.save_freq=-1",
    )
    run.wait_for(lambda: 1 in run.steps())
    killed = explorers_engine(run)
    killed.send_signal(signal.SIGKILL)
    run.wait_for(lambda: run.log.count(" is back") >= 1)
    back_at = max(run.steps())
    run.wait_for(lambda: max(run.steps()) > back_at)
    stopped = explorers_engine(run)
    stopped.send_signal(signal.SIGSTOP)
    rewards = processes(run, "ray::RewardLoopWorker")
    rewards[0].send_signal(signal.SIGKILL)
    run.wait_for(lambda: run.log.count(" is back") >= 2)
    run.stopped = stopped
    return run.wait()


def test_killed_and_stopped_engines_are_replaced_and_the_run_has_every_step(waited) -> None:
    assert sorted(waited.steps()) == list(SLOTS)
    assert waited.steps()[TOTAL]["s2l/explorer/restarts"] == 2
    assert not psutil.pid_exists(waited.stopped.pid)


def test_no_row_is_lost_and_none_changes_its_sampler_while_sessions_wait(waited) -> None:
    for step, data in waited.steps().items():
        assert data["s2l/source/explorer/rows"] == SLOTS[step] * PROMPTS, step
        assert data["s2l/source/learner/rows"] == ROWS - SLOTS[step] * PROMPTS, step
        assert data["s2l/explorer/missing_rows"] == data["s2l/explorer/fallback_rows_failure"] == 0, step


def test_failures_are_counted(waited) -> None:
    assert total(waited, "s2l/explorer/failed_requests") >= 1
    assert total(waited, "s2l/explorer/down_seconds") > 2
    quiet = [data for data in waited.steps().values() if data["s2l/explorer/down_seconds"] == 0]
    assert quiet, "some steps saw no failure"


def test_a_killed_reward_worker_is_replaced_and_its_rows_are_graded(waited) -> None:
    assert waited.steps()[TOTAL]["s2l/reward/restarts"] == 1


# ---- fail, then the learner ---------------------------------------------------------------------------------------

TAKEN = (
    "s2l.explorer.baseline=per_source",
    "s2l.explorer.correction=truncated_is",
    "actor_rollout_ref.rollout.calculate_log_probs=true",
    f"trainer.total_training_steps={TOTAL}",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=1",
)


@pytest.fixture(scope="module")
def ended(launch, small_run):
    run = launch("s2l_po/toy", *small_run, *WATCH, *TAKEN)
    run.wait_for((run.folder / "latest_checkpointed_iteration.txt").exists)
    explorers_engine(run).send_signal(signal.SIGKILL)
    run.code = run.process.wait(300)
    run.end()
    return run


def test_by_default_the_run_ends_with_one_message(ended) -> None:
    assert ended.code == 2, ended.log[-6000:]
    (said,) = [line for line in ended.log.splitlines() if line.startswith("s2l: error: ")]
    assert "the explorer failed: " in said and "s2l.explorer.on_failure=fail ends the run here" in said
    assert "The same command resumes from the last checkpoint" in said


@pytest.fixture(scope="module")
def taken_over(ended, launch, small_run):
    policy = ("s2l.explorer.on_failure=learner", "s2l.explorer.max_restarts=0")
    before = max(ended.steps())
    run = launch("s2l_po/toy", *small_run, *WATCH, *TAKEN, *policy, folder=ended.folder)
    run.wait_for(lambda: "setting global step to" in run.log and max(run.steps()) > before)
    explorers_engine(run).send_signal(signal.SIGKILL)
    return run.wait()


def test_the_same_command_with_another_policy_goes_on_and_ends(taken_over) -> None:
    assert sorted(taken_over.steps()) == list(SLOTS)
    assert taken_over.log.count("the learner samples the explorer's sessions for the rest of its schedule") == 1


def test_the_learners_rows_in_the_explorers_place_are_its_own_and_counted(taken_over) -> None:
    for step, data in taken_over.steps().items():
        planned, fallen = SLOTS[step] * PROMPTS, data["s2l/explorer/fallback_rows_failure"]
        assert data["s2l/explorer/missing_rows"] == 0, step
        assert data["s2l/source/explorer/rows"] == planned - fallen, step
        assert data["s2l/source/learner/rows"] == ROWS - planned + fallen, step
        assert data["s2l/explorer/fraction"] == (planned - fallen) / ROWS, step
        assert data.get("s2l/source/learner/is_weight_mean", 1.0) == 1.0, step
    assert total(taken_over, "s2l/explorer/fallback_rows_failure") > 0


def test_nothing_of_a_dead_explorer_is_held(taken_over) -> None:
    last = taken_over.steps()[TOTAL]
    assert last["s2l/explorer/rollouts_per_group"] > 0
    assert last["s2l/explorer/fallback_rows_failure"] == last["s2l/explorer/rollouts_per_group"] * PROMPTS
    assert last["s2l/explorer/num_gpus"] == 0 and last["s2l/explorer/restarts"] == 0
