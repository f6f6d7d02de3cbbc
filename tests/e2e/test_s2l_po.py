"""S2L-PO on the real stack: who samples what, what is logged, and a run killed and resumed."""

import json
from pathlib import Path

import pytest

from s2l_ext.algorithms.explorer import LinearAnnealing

MIX_STEPS, GROUP, PROMPTS, TOTAL = 4, 4, 4, 6
SCHEDULE = [LinearAnnealing(MIX_STEPS, GROUP).slots(step) for step in range(1, TOTAL + 1)]
OVERRIDES = (
    f"s2l.explorer.mix_steps={MIX_STEPS}",
    f"trainer.total_training_steps={TOTAL}",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=2",
    "actor_rollout_ref.rollout.calculate_log_probs=true",
)


@pytest.fixture(scope="module")
def interrupted_and_resumed(launch, small_run):
    """Killed with SIGKILL once the checkpoint of step 2 is complete, then started again with the same command."""
    first = launch("s2l_po/toy", *small_run, *OVERRIDES)
    first.kill_9_after_checkpoint(2)
    before = first.steps()
    second = launch("s2l_po/toy", *small_run, *OVERRIDES, folder=first.folder).wait()
    return before, second


def test_the_kill_happened_in_the_middle(interrupted_and_resumed) -> None:
    before, _ = interrupted_and_resumed
    assert before and max(before) <= 3


def test_resumed_run_continues_at_the_next_step_with_the_same_slots(interrupted_and_resumed) -> None:
    before, run = interrupted_and_resumed
    resumed_at = int(run.log.split("setting global step to ")[1].split()[0])
    assert resumed_at in (2, 3)
    for step in range(1, min(resumed_at, max(before)) + 1):
        assert run.steps()[step] == before[step], "a step before the checkpoint was run again"
    assert sorted(run.steps()) == list(range(1, TOTAL + 1))
    assert [run.steps()[step]["s2l/explorer/slots"] for step in sorted(run.steps())] == SCHEDULE


def test_metrics_file_has_every_step_once(interrupted_and_resumed) -> None:
    _, run = interrupted_and_resumed
    steps = [line["step"] for line in run.lines() if "training/global_step" in line["data"]]
    assert steps == list(range(1, TOTAL + 1))


def test_first_slots_of_every_group_are_the_explorers(interrupted_and_resumed) -> None:
    _, run = interrupted_and_resumed
    for step, slots in enumerate(SCHEDULE, start=1):
        metrics = run.steps()[step]
        assert metrics["s2l/source/explorer/rows"] == slots * PROMPTS
        assert metrics["s2l/source/learner/rows"] == (GROUP - slots) * PROMPTS
        assert metrics["s2l/explorer/share"] == pytest.approx(slots / GROUP)


def test_explorer_rows_really_come_from_another_model(interrupted_and_resumed) -> None:
    """The divergence between sampler and learner is large on explorer rows and about nothing on learner rows."""
    _, run = interrupted_and_resumed
    for metrics in run.steps().values():
        if metrics["s2l/source/explorer/rows"]:
            assert metrics["s2l/source/explorer/sampler_k3"] > 1e-4
        if metrics["s2l/source/learner/rows"]:
            assert metrics["s2l/source/learner/sampler_k3"] < 1e-6


def test_old_log_probs_are_the_learners_so_the_ratio_starts_at_one(interrupted_and_resumed) -> None:
    _, run = interrupted_and_resumed
    for metrics in run.steps().values():
        for source in ("explorer", "learner"):
            if metrics[f"s2l/source/{source}/rows"]:
                assert metrics[f"s2l/source/{source}/ppo_ratio_mean"] == pytest.approx(1.0, abs=1e-3)


def test_one_baseline_over_the_union(interrupted_and_resumed) -> None:
    """Advantages cancel over the whole group, not inside each source."""
    _, run = interrupted_and_resumed
    mixed = [m for m, slots in zip(run.steps().values(), SCHEDULE, strict=True) if 0 < slots < GROUP]
    for metrics in mixed:
        total = sum(
            metrics[f"s2l/source/{source}/advantage_mean"] * metrics[f"s2l/source/{source}/rows"]
            for source in ("explorer", "learner")
        )
        assert total == pytest.approx(0, abs=1e-3)


def test_servers_stop_when_the_schedule_reaches_zero(interrupted_and_resumed) -> None:
    _, run = interrupted_and_resumed
    running = [run.steps()[step]["s2l/explorer/gpus_held"] for step in range(1, TOTAL + 1)]
    expected = [int(LinearAnnealing(MIX_STEPS, GROUP).slots(step + 1) > 0) for step in range(1, TOTAL + 1)]
    assert running == expected
    assert "explorer servers stopped, 1 of their 1 GPUs released" in run.log


def test_no_session_failed(interrupted_and_resumed) -> None:
    _, run = interrupted_and_resumed
    assert [run.steps()[step]["s2l/explorer/missing_rows"] for step in range(1, TOTAL + 1)] == [0] * TOTAL


def test_state_lies_beside_the_checkpoint(interrupted_and_resumed) -> None:
    _, run = interrupted_and_resumed
    state = json.loads((run.folder / f"global_step_{TOTAL}" / "s2l_state.json").read_text())
    expected = {"explorer.model": "small", "explorer.mix_steps": MIX_STEPS, "group_size": GROUP}
    assert expected.items() <= state["fingerprint"].items()


def test_another_schedule_is_refused_on_resume_before_training(interrupted_and_resumed, launch, small_run) -> None:
    _, run = interrupted_and_resumed
    overrides = [o.replace(f"mix_steps={MIX_STEPS}", "mix_steps=3") for o in OVERRIDES]
    refused = launch("s2l_po/toy", *small_run, *overrides, folder=run.folder)
    assert refused.process.wait(300) != 0
    refused.end()
    assert "explorer.mix_steps: checkpoint 4, this run 3" in refused.log


def test_composed_configuration_is_kept(interrupted_and_resumed) -> None:
    _, run = interrupted_and_resumed
    assert "mix_steps: 4" in Path(run.folder, "s2l_config.yaml").read_text()
