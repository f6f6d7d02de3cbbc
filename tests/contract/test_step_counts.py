"""Which step, which rows and which prompts: every count of the driver by a value worked out by hand."""

import json
from math import exp

import pytest
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from s2l_ext.methods.curriculum.orders import FileOrder
from s2l_ext.methods.curriculum.sampler import CurriculumSampler
from s2l_ext.methods.explorer.schedule import LinearAnnealing
from s2l_ext.methods.explorer.serving import lifecycle
from s2l_ext.training import label_selectors, needed
from s2l_ext.training.batch_fields import KL_BETA_FIELD, SLOTS_FIELD
from s2l_ext.training.outcomes import RolloutOutcome
from s2l_ext.training.pending_prompts import PendingPrompts, PromptPlan
from s2l_ext.training.step import Step, StepRows, row_order

pytestmark = pytest.mark.contract

SLOTS = [4, 2, 0]
"""Of the schedule with ``mix_steps=3`` and groups of four, at steps 1, 2 and 3."""


@pytest.fixture
def explores(trainer_of, monkeypatch, prompts_drawn):
    """A trainer whose explorer has the schedule of ``SLOTS``; verl draws prompts ``x`` and ``y``."""
    monkeypatch.setattr(PPOTrainer, "_next_train_batch", lambda self, number=None: prompts_drawn("x", "y"))
    monkeypatch.setattr(PPOTrainerSync, "on_step_end", lambda self: None)
    trainer = trainer_of("s2l_po/toy", "s2l.explorer.mix_steps=3", "actor_rollout_ref.rollout.n=4")
    (explorer,) = trainer.methods
    explorer.life = lifecycle.ExplorerLifecycle(explorer.config, explorer.slots, trainer)
    return trainer


@pytest.fixture
def life(explores):
    """Of the explorer of ``explores``."""
    return explores.methods[0].life


# ---- the step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3])
def test_prompts_are_planned_for_their_step_and_sampled_with_the_weights_before_it(
    explores, life, servers, step
) -> None:
    """verl counts weight versions from 0: rows of step 1 are of version 0, or its staleness would be negative."""
    explores.global_steps, life.servers = step, servers(gpus=1, freed=1)
    batch = explores._next_train_batch()
    assert life.servers.steps == [step - 1]
    slots = SLOTS[step - 1]
    assert list(batch[SLOTS_FIELD]) == [slots, slots]
    assert dict(explores.pending.plans) == {uid: PromptPlan(step, slots=slots) for uid in "xy"}


@pytest.mark.parametrize(("step", "stopped"), [(1, 0), (2, 1), (3, 1)])
def test_the_explorer_is_released_after_the_last_step_with_slots(
    explores, life, servers, step: int, stopped: int
) -> None:
    """At the end of step 2, because step 3 has no slots; three of five GPUs come back at once."""
    explores.global_steps, live = step, servers(gpus=5, freed=3)
    life.servers = live
    explores.on_step_end()
    assert live.stopped == stopped
    assert (life.servers is None) == bool(stopped)
    assert life.num_gpus == (2 if stopped else 5)


def test_the_explorer_stays_while_prompts_of_an_earlier_step_wait_for_it(explores, life, servers) -> None:
    explores.global_steps, life.servers = 2, servers(gpus=5, freed=5)
    explores.pending.add({"late": PromptPlan(2, slots=2)})
    explores.on_step_end()
    assert life.servers is not None and life.num_gpus == 5
    explores.pending.pop_trained({"late"}, waiting=set())
    explores.on_step_end()
    assert life.servers is None and life.num_gpus == 0


def test_one_slot_is_enough_to_keep_the_explorer(explores, life, servers) -> None:
    life.slots = LinearAnnealing(mix_steps=5, group_size=2).slots  # slots 2, 2, 1, 1, 0
    explores.global_steps, life.servers = 3, servers(gpus=5, freed=5)
    explores.on_step_end()
    assert life.servers is not None
    explores.global_steps = 4
    explores.on_step_end()
    assert life.servers is None


@pytest.mark.parametrize(("done", "starts"), [(None, True), (1, True), (2, False), (3, False)])
def test_a_resumed_run_starts_its_explorer_for_the_step_after_the_checkpoint(
    explores, life, monkeypatch, tmp_path, done, starts: bool
) -> None:
    folder = None if done is None else tmp_path / f"global_step_{done}"
    monkeypatch.setattr(needed, "checkpoint_folder", lambda config: folder)
    monkeypatch.setattr(lifecycle, "EarlyStart", lambda start, placed: "started")
    assert (life._start_early() == "started") == starts
    explores.global_steps = done or 0
    assert life.is_needed() == starts


def test_a_validation_alone_starts_no_explorer(explores, life, monkeypatch) -> None:
    monkeypatch.setattr(lifecycle, "EarlyStart", lambda start, placed: "started")
    assert life._start_early() == "started"
    explores.config.trainer.val_only = True
    assert life._start_early() is None and not life.is_needed()
    explores.config.trainer.val_before_train = False  # verl then trains whatever val_only says
    assert life._start_early() == "started" and life.is_needed()


@pytest.mark.parametrize(("before_train", "kept"), [(True, [4, 5]), (False, [4])])
def test_only_a_validation_leaves_the_logs_of_a_run_as_they_are(
    trainer_of, monkeypatch, tmp_path, before_train: bool, kept: list[int]
) -> None:
    """``val_only`` without its validation trains, and step 5 comes again."""
    trainer = trainer_of("grpo/toy", "trainer.val_only=true", f"trainer.val_before_train={before_train}")
    trainer.config.trainer.default_local_dir, trainer.global_steps = str(tmp_path), 4
    monkeypatch.setattr(PPOTrainer, "_setup", lambda self: None)
    monkeypatch.setattr(label_selectors, "record", lambda *_: None)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "data": {}}) + "\n" for n in (4, 5)))
    trainer._setup()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == kept


def test_only_a_synchronous_run_knows_its_explorer_from_the_checkpoints_step(explores, life, monkeypatch) -> None:
    """An asynchronous one may have prompts in verl's queue that wait for it."""
    monkeypatch.setattr(needed, "checkpoint_folder", lambda config: None)
    explores.mode = "colocate_async"
    assert life._start_early() is None


def test_the_metric_is_the_slots_of_the_prompts_trained_on(explores, life) -> None:
    """Of an asynchronous step at 3: one prompt of step 1 and two of step 2. Three of twelve rows are the explorer's."""
    explores.mode, life.num_gpus = "colocate_async", 2
    plans = {"p": PromptPlan(1, slots=4), "q": PromptPlan(2, slots=2), "r": PromptPlan(2, slots=2)}
    explores.step_plans = plans
    names = [f"{uid}_{number}_0" for uid in plans for number in range(4)]
    rows = StepRows(names, ["explorer"] * 3 + ["learner"] * 9, [0] * 12, None, [{}] * 12)
    explores.current = Step(3, KVBatchMeta(), {}, plans, rows)
    explores.pending.add({"s": PromptPlan(3)})
    found = explores._own_metrics(3)
    assert found["s2l/explorer/rollouts_per_group"] == pytest.approx(8 / 3)
    assert (found["s2l/explorer/fraction"], found["s2l/explorer/num_gpus"]) == (0.25, 2)
    assert found["s2l/async/staleness_mean"] == pytest.approx(4 / 3) and found["s2l/async/staleness_max"] == 2.0
    assert found["s2l/async/pending_prompts"] == 1.0


def test_lag_is_the_step_minus_the_draw() -> None:
    taken = {"a": PromptPlan(1), "b": PromptPlan(4), "c": PromptPlan(4)}
    found = PendingPrompts().metrics(5, taken)
    assert (found["s2l/async/staleness_mean"], found["s2l/async/staleness_max"]) == (2.0, 4.0)
    assert PendingPrompts().metrics(5, {})["s2l/async/staleness_mean"] == 0.0


# ---- the rows -----------------------------------------------------------------------------------------------------

SESSIONS = {  # accuracy, source, guidance tokens
    "a_0_0": (0.0, "explorer", 0),
    "a_1_0": (1.0, "learner", 5),
    "a_2_0": (0.0, "learner", 0),
    "b_0_0": (1.0, "explorer", 0),
    "b_1_0": (1.0, "learner", 0),
    "b_2_0": (1.0, "learner", 0),
    "b_3_0": (0.0, "learner", 0),
    "pad_0_0": (1.0, "learner", 0),
}


def observed(queue, trainer, metrics: dict[str, float] | None = None) -> Step:
    """The step after the trainer has shown its rows to the methods."""
    queue.rows = {
        key: {
            "extra_fields": {"reward_extra_info": {"score": 0.0, "acc": acc}},
            "rm_scores": [0.0],
            "s2l_source": source,
            "s2l_prefix_len": prefix,
        }
        for key, (acc, source, prefix) in SESSIONS.items()
    }
    return trainer._observe(queue.batch(padding=("pad_0_0",)), {} if metrics is None else metrics)


@pytest.fixture
def combined(trainer_of, method_of):
    """``combined(*overrides)``: a trainer that has an explorer and guidance, before the update of the step."""

    def make(*overrides: str):
        trainer = trainer_of("s2l_po/toy", "s2l.guidance={alpha: 0.5}", *overrides)
        trainer.config.actor_rollout_ref.rollout.n = 4
        trainer.step_plans = {"a": PromptPlan(1, slots=1, index=0), "b": PromptPlan(1, slots=1, index=1)}
        explorer, guidance = method_of(trainer, "explorer"), method_of(trainer, "guidance")
        explorer.life = lifecycle.ExplorerLifecycle(explorer.config, explorer.slots, trainer)
        guidance.learn = lambda length, sessions: None
        return trainer

    return make


def test_the_kl_coefficient_is_from_the_accuracy_of_every_row_but_padding(queue, combined, method_of) -> None:
    """4 of 7, whoever sampled them: 0.02 * (tanh(4/7) + 1) / 2 = 0.02 / (1 + exp(-8/7))."""
    trainer = combined("s2l.kl={beta: 0.02}")
    kl = method_of(trainer, "kl")
    kl.start(trainer)
    step = observed(queue, trainer)
    kl.before_update(step)
    assert kl.applied["accuracy"] == pytest.approx(4 / 7)
    assert step.batch.extra_info[KL_BETA_FIELD] == pytest.approx(0.02 / (1 + exp(-8 / 7)))


@pytest.mark.parametrize(("rows", "rates"), [("learner_unguided", [0.0, 2 / 3]), ("all", [1 / 3, 0.75])])
def test_pass_rates_count_the_rows_that_are_asked_for(
    queue, combined, rows: str, rates: list[float], method_of
) -> None:
    """The learner's own: one of a (the guided one does not count), three of b."""
    trainer = combined(f"s2l.curriculum={{type: file_order, estimate_from: {rows}}}")
    curriculum = method_of(trainer, "curriculum")
    curriculum.sampler = CurriculumSampler(FileOrder(4, ema=0.5), 4, 2)
    observed(queue, trainer)
    assert list(curriculum.observed.values()) == pytest.approx(rates)
    expected = [0.5 * 0.5 + 0.5 * rate for rate in rates]
    assert curriculum.sampler.curriculum.pass_rates.rates.tolist() == pytest.approx([*expected, 0.5, 0.5])


def test_sessions_carry_their_source_and_their_guidance(queue, combined) -> None:
    found = observed(queue, combined()).outcomes
    assert found == [RolloutOutcome(key[0], *values) for key, values in SESSIONS.items() if key != "pad_0_0"]


def test_missing_rows_are_counted_by_who_was_to_sample_them(queue, combined, method_of) -> None:
    """Group a lacks one of three learner rows; a guided row is the learner's."""
    metrics: dict[str, float] = {}
    seen: list[float] = []
    trainer = combined()
    method_of(trainer, "guidance").learn = lambda length, sessions: seen.extend([length, len(sessions)])
    lengths = {"a": 4, "b": 7}
    trainer.step_plans = {uid: PromptPlan(1, slots=1, guided=2, length=lengths[uid]) for uid in lengths}
    observed(queue, trainer, metrics)
    assert (metrics["s2l/explorer/missing_rows"], metrics["s2l/learner/missing_rows"]) == (0.0, 1.0)
    assert metrics["s2l/explorer/restarts"] == metrics["s2l/explorer/fallback_rows_failure"] == 0.0
    assert seen == [5.5, 7], "the length that the rows were drawn with, and every session"


def test_rows_come_in_the_order_of_draw_session_and_output() -> None:
    """Prompts as they were drawn, not by name; the tenth after the ninth; unknown prompts last."""
    keys = ["new_0_0", "a_10_0", "b_x_0_0", "a_9_1", "a_9_0", "b_x_0_11", "b_x_0_2"]
    assert row_order(["b_x", "a"], keys) == [2, 6, 5, 4, 3, 1, 0]
