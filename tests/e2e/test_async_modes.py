"""verl's asynchronous trainer modes on the real stack: S2L-PO, accuracy-conditioned KL and Gaussian curriculum where
learner and rollouts share their device, S2L-PO with guidance where rollouts have a device of their own."""

import json
import math
from collections import Counter

import pytest

from s2l_ext.methods.explorer.schedule import LinearAnnealing
from s2l_ext.methods.guidance.length import AdaptiveGuidance

pytestmark = pytest.mark.long

PROMPTS, GROUP, BETA, LAST = 4, 4, 0.02, 5
"""``LAST``: the step at which the explorer has handed over."""
COMMON = ("actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent", "trainer.save_freq=1")
COLOCATED = (
    "trainer.v1.trainer_mode=colocate_async",
    "trainer.v1.colocate_async.num_warmup_batches=1.5",  # 6 prompts ahead: a step takes those of two others
    f"s2l.explorer.mix_steps={LAST}",
    "trainer.total_training_steps=6",
    "trainer.max_actor_ckpt_to_keep=2",
)
SEPARATE = (
    "trainer.v1.trainer_mode=separate_async",
    "trainer.v1.separate_async.parameter_sync_step=1",
    "actor_rollout_ref.hybrid_engine=false",  # no servers on the learner's device
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=s2l_cpu",
    "ray_kwargs.ray_init.num_gpus=3",  # learner, rollouts, explorer
    "s2l.explorer.mix_steps=3",
    "trainer.total_training_steps=4",
)


LAUNCHES = [
    {
        "fixture": "colocated",
        "recipe": "combined/expo_s2l",
        "overrides": (*COLOCATED, *COMMON),
        "shown_by": "test_steps_train_on_prompts_of_earlier_steps_within_the_printed_limit",
        "rows": {"resume after kill -9": "test_no_prompt_is_lost_or_trained_on_twice_through_the_kill"},
    },
    {
        "fixture": "separate",
        "recipe": "combined/g2rpo_a_s2l",
        "overrides": (*SEPARATE, *COMMON),
        "shown_by": "test_separate_plans_are_bounded_and_applied",
    },
]


@pytest.fixture(scope="module")
def colocated(kill_and_resume, small_run):
    """Killed after step 2, with prompts in flight, and continued by the same command."""
    return kill_and_resume("combined/expo_s2l", *small_run, *COLOCATED, *COMMON)


@pytest.fixture(scope="module")
def separate(launch, small_run):
    return launch("combined/g2rpo_a_s2l", *small_run, *SEPARATE, *COMMON).wait()


def plan(run) -> dict:
    return json.loads((run.folder / "plan.json").read_text())


# ---- learner and rollouts on one device, killed and resumed -------------------------------------------------------


def test_colocated_run_has_every_step_once_through_the_kill(colocated) -> None:
    before, run = colocated
    assert set(before) >= {1, 2} and sorted(run.steps()) == [1, 2, 3, 4, 5, 6]
    lines = [line["step"] for line in run.lines() if "training/global_step" in line["data"]]
    assert sorted(lines) == lines and len(set(lines)) == 6


def test_two_checkpoints_are_left_of_both_starts(colocated) -> None:
    _, run = colocated
    assert {path.parent.name for path in run.folder.glob("global_step_*/actor")} == {"global_step_5", "global_step_6"}


def test_steps_train_on_prompts_of_earlier_steps_within_the_printed_limit(colocated) -> None:
    _, run = colocated
    assert "colocate_async, 1.5 batch(es) drawn ahead, a row's plan at most 7 steps old" in run.log
    for step, line in run.draws().items():
        lags, metrics = [step - drawn for drawn in line["drawn_at"]], run.steps()[step]
        assert metrics["s2l/async/staleness_max"] == max(lags) <= plan(run)["mode"]["lag_limit"] == 7
        assert metrics["s2l/async/staleness_mean"] == pytest.approx(sum(lags) / len(lags)) and min(lags) >= 0
    assert max(metrics["s2l/async/staleness_max"] for metrics in run.steps().values()) >= 1


def test_no_prompt_is_lost_or_trained_on_twice_through_the_kill(colocated) -> None:
    """Each step draws a batch, the first one 1.5 batches more; verl dropped none of them."""
    _, run = colocated
    assert all(metrics["s2l/async/pending_prompts"] == 1.5 * PROMPTS for metrics in run.steps().values())
    assert all(metrics["s2l/async/dropped_prompts"] == 0 for metrics in run.steps().values())
    drawn_at = Counter(drawn for line in run.draws().values() for drawn in line["drawn_at"])
    assert sum(drawn_at.values()) == 6 * PROMPTS
    assert all(count <= PROMPTS * (2.5 if step == 1 else 1) for step, count in drawn_at.items())
    assert drawn_at[1] == 2.5 * PROMPTS and drawn_at[2] == PROMPTS, "the oldest that are finished come first"


def test_slots_are_those_of_the_step_that_drew_the_prompt(colocated, saved_rows) -> None:
    _, run = colocated
    schedule = LinearAnnealing(LAST, GROUP)
    for step, line in run.draws().items():
        slots = [schedule.slots(drawn) for drawn in line["drawn_at"]]
        metrics = run.steps()[step]
        assert metrics["s2l/explorer/rollouts_per_group"] == pytest.approx(sum(slots) / PROMPTS)
        assert metrics["s2l/explorer/fraction"] == pytest.approx(sum(slots) / (PROMPTS * GROUP))
        explorers = [row["session"] for row in saved_rows.rows_by_step(run)[step] if row["source"] == "explorer"]
        assert explorers == list(range(slots[0])), "the first prompt of the step is the one in samples.jsonl"
    assert len({metrics["s2l/explorer/rollouts_per_group"] for metrics in run.steps().values()}) >= 4


def test_explorer_stays_until_the_last_prompt_that_needs_it_is_trained_on(colocated) -> None:
    _, run = colocated
    for step, metrics in run.steps().items():
        still_drawn = LinearAnnealing(LAST, GROUP).slots(step + 1) > 0
        later = [line for later_step, line in run.draws().items() if later_step > step]
        waiting = any(drawn <= step and drawn < LAST for line in later for drawn in line["drawn_at"])
        if still_drawn or waiting:
            assert metrics["s2l/explorer/num_gpus"] == 1, step
    assert run.steps()[6]["s2l/explorer/num_gpus"] in (0, 1)


def test_beta_is_that_of_the_rows_trained_on(colocated) -> None:
    _, run = colocated
    for metrics in run.steps().values():
        assert metrics["s2l/kl/accuracy"] == pytest.approx(metrics["critic/score/mean"], abs=1e-6)
        expected = BETA * (math.tanh(metrics["s2l/kl/accuracy"]) + 1) / 2
        assert metrics["s2l/kl/beta"] == pytest.approx(expected, abs=1e-9)
        assert metrics["s2l/kl/beta_reported_low"] == metrics["s2l/kl/beta_reported_high"] == metrics["s2l/kl/beta"]


def test_curriculum_learns_from_the_prompts_trained_on(colocated) -> None:
    """Pass rates are of the learner's own rows: prompts drawn at full explorer share show none."""
    _, run = colocated
    for step, line in run.draws().items():
        known = [rate is not None for rate in line["pass_rates"]]
        assert known == [LinearAnnealing(LAST, GROUP).slots(drawn) < GROUP for drawn in line["drawn_at"]]
        assert run.steps()[step]["s2l/curriculum/updated_prompts"] <= sum(known)
    last = run.draws()[6]
    seen = sum(times * count for times, count in enumerate(last["visits"]))
    assert seen == sum(metrics["s2l/curriculum/updated_prompts"] for metrics in run.steps().values())


def test_prompts_in_flight_were_sent_again_with_their_plan_or_kept(colocated) -> None:
    """Their rows were finished at the kill, or verl sends the prompt again; the slots of steps 3 and 4 say the rest."""
    before, run = colocated
    assert before[2]["s2l/async/pending_prompts"] == run.steps()[2]["s2l/async/pending_prompts"] == 1.5 * PROMPTS
    assert "prompt groups from TransferQueue" in run.log
    drawn = [drawn for step in (3, 4, 5) for drawn in run.draws()[step]["drawn_at"]]
    assert sum(step <= 2 for step in drawn) == 1.5 * PROMPTS, "all six were drawn before the kill"


# ---- rollouts on a device of their own ----------------------------------------------------------------------------


def test_separate_run_trains_with_new_weights_at_every_step(separate) -> None:
    assert sorted(separate.steps()) == [1, 2, 3, 4]
    assert "separate_async, 1 GPU(s) for its rollouts, 1 batch(es) drawn ahead" in separate.log
    for step, metrics in separate.steps().items():
        assert metrics["training/off_policy/trajectory_staleness/max"] <= 1, step
        assert metrics["timing_s/update_weights"] > 0


def test_separate_rollouts_sample_from_the_weights_that_were_sent(separate) -> None:
    """Their servers start with random weights. Sampler and learner differ by the one step that lies between them."""
    assert "load_format: dummy" in (separate.folder / "s2l_config.yaml").read_text()
    with_learner = [metrics for metrics in separate.steps().values() if metrics["s2l/source/learner/rows"]]
    for metrics in with_learner:
        assert metrics["s2l/source/learner/kl_sampler_learner_k3"] < 0.05
        assert metrics["s2l/source/learner/is_ratio_mean"] == pytest.approx(1, abs=0.1)
    assert len(with_learner) >= 2


def test_separate_plans_are_bounded_and_applied(separate, saved_rows) -> None:
    slots = LinearAnnealing(3, GROUP)
    for step, metrics in separate.steps().items():
        lag = metrics["s2l/async/staleness_max"]
        assert lag <= 7 and metrics["s2l/async/pending_prompts"] == PROMPTS
        allowed = [slots.slots(drawn) for drawn in range(max(1, step - int(lag)), step + 1)]
        assert min(allowed) <= metrics["s2l/explorer/rollouts_per_group"] <= max(allowed)
        rows = saved_rows.rows_by_step(separate)[step]
        explorers = [row["session"] for row in rows if row["source"] == "explorer"]
        assert explorers == list(range(len(explorers))) and len(explorers) in allowed
        guided = [row["session"] for row in rows if row["guidance"]]
        assert guided == list(range(len(explorers), len(explorers) + min(2, GROUP - len(explorers))))


def test_separate_guidance_follows_the_accuracies_trained_on(separate) -> None:
    lengths = [metrics["s2l/guidance/length"] for metrics in separate.steps().values()]
    assert lengths[0] == 44 and all(1 <= length <= 48 for length in lengths)
    rule = AdaptiveGuidance(initial=44, max_length=48)
    for metrics in separate.steps().values():
        if "s2l/guidance/accuracy" in metrics:
            rule.observe(metrics["s2l/guidance/accuracy"], used_length=metrics["s2l/guidance/length"])
        assert metrics["s2l/guidance/next_length"] == rule.length
    guided = [metrics["s2l/guidance/guided_rows"] for metrics in separate.steps().values()]
    assert sum(guided) > 0
