"""Which step, which rows and which prompts: every count of the driver by a value worked out by hand."""

import json
from math import exp
from types import SimpleNamespace

import pytest
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from s2l_ext.methods.curriculum.config import CurriculumConfig
from s2l_ext.methods.curriculum.controller import StepPrompts
from s2l_ext.methods.curriculum.orders import FileOrder
from s2l_ext.methods.curriculum.sampler import CurriculumSampler
from s2l_ext.methods.explorer.schedule import LinearAnnealing
from s2l_ext.methods.explorer.serving import lifecycle as explorer_life
from s2l_ext.methods.explorer.stored_controller import StepRollouts
from s2l_ext.methods.kl.config import KLConfig
from s2l_ext.methods.kl.controller import StepKL
from s2l_ext.training import needed
from s2l_ext.training.batch_fields import KL_BETA_FIELD, SLOTS_FIELD
from s2l_ext.training.outcomes import Session, row_order
from s2l_ext.training.pending_prompts import InFlight, PromptPlan

pytestmark = pytest.mark.contract

SLOTS = [4, 2, 0]
"""Of the schedule with ``mix_steps=3`` and groups of four, at steps 1, 2 and 3."""


@pytest.fixture
def explores(trainer_of, monkeypatch, prompts_drawn):
    """A trainer whose explorer has the schedule of ``SLOTS``; verl draws prompts ``x`` and ``y``."""
    monkeypatch.setattr(PPOTrainer, "_next_train_batch", lambda self, number=None: prompts_drawn("x", "y"))
    monkeypatch.setattr(PPOTrainerSync, "on_step_end", lambda self: None)
    trainer = trainer_of("s2l_po/toy")
    trainer.schedule = LinearAnnealing(mix_steps=3, group_size=4)
    return trainer


# ---- the step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3])
def test_prompts_are_planned_for_their_step_and_sampled_with_the_weights_before_it(explores, servers, step) -> None:
    """verl counts weight versions from 0: rows of step 1 are of version 0, or its staleness would be negative."""
    explores.global_steps, explores.explorer_servers = step, servers(gpus=1, freed=1)
    batch = explores._next_train_batch()
    assert explores.explorer_servers.steps == [step - 1]
    slots = SLOTS[step - 1]
    assert list(batch[SLOTS_FIELD]) == [slots, slots]
    assert dict(explores.in_flight.plans) == {uid: PromptPlan(step, slots=slots) for uid in "xy"}


@pytest.mark.parametrize(("step", "stopped"), [(1, 0), (2, 1), (3, 1)])
def test_the_explorer_is_released_after_the_last_step_with_slots(explores, servers, step: int, stopped: int) -> None:
    """At the end of step 2, because step 3 has no slots; three of five GPUs come back at once."""
    explores.global_steps, live = step, servers(gpus=5, freed=3)
    explores.explorer_servers = live
    explores.on_step_end()
    assert live.stopped == stopped
    assert (explores.explorer_servers is None) == bool(stopped)
    assert explores.explorer_gpus_held == (2 if stopped else 5)


def test_the_explorer_stays_while_prompts_of_an_earlier_step_wait_for_it(explores, servers) -> None:
    explores.global_steps, explores.explorer_servers = 2, servers(gpus=5, freed=5)
    explores.in_flight.add({"late": PromptPlan(2, slots=2)})
    explores.on_step_end()
    assert explores.explorer_servers is not None and explores.explorer_gpus_held == 5
    explores.in_flight.take({"late"}, waiting=set())
    explores.on_step_end()
    assert explores.explorer_servers is None and explores.explorer_gpus_held == 0


def test_one_slot_is_enough_to_keep_the_explorer(explores, servers) -> None:
    explores.schedule = LinearAnnealing(mix_steps=5, group_size=2)  # slots 2, 2, 1, 1, 0
    explores.global_steps, explores.explorer_servers = 3, servers(gpus=5, freed=5)
    explores.on_step_end()
    assert explores.explorer_servers is not None
    explores.global_steps = 4
    explores.on_step_end()
    assert explores.explorer_servers is None


@pytest.mark.parametrize(("done", "starts"), [(None, True), (1, True), (2, False), (3, False)])
def test_a_resumed_run_starts_its_explorer_for_the_step_after_the_checkpoint(
    explores, monkeypatch, tmp_path, done, starts: bool
) -> None:
    folder = None if done is None else tmp_path / f"global_step_{done}"
    monkeypatch.setattr(needed, "checkpoint_folder", lambda config: folder)
    monkeypatch.setattr(explorer_life, "EarlyStart", lambda start, placed: "started")
    assert (explores._start_explorer_early() == "started") == starts
    explores.global_steps = done or 0
    assert explores._explorer_is_needed() == starts


def test_a_validation_alone_starts_no_explorer(explores, monkeypatch) -> None:
    monkeypatch.setattr(explorer_life, "EarlyStart", lambda start, placed: "started")
    assert explores._start_explorer_early() == "started"
    explores.config.trainer.val_only = True
    assert explores._start_explorer_early() is None and not explores._explorer_is_needed()
    explores.config.trainer.val_before_train = False  # verl then trains whatever val_only says
    assert explores._start_explorer_early() == "started" and explores._explorer_is_needed()


@pytest.mark.parametrize(("before_train", "kept"), [(True, [4, 5]), (False, [4])])
def test_only_a_validation_leaves_the_logs_of_a_run_as_they_are(
    trainer_of, monkeypatch, tmp_path, before_train: bool, kept: list[int]
) -> None:
    """``val_only`` without its validation trains, and step 5 comes again."""
    trainer = trainer_of("grpo/toy", "trainer.val_only=true", f"trainer.val_before_train={before_train}")
    trainer.config.trainer.default_local_dir, trainer.global_steps = str(tmp_path), 4
    monkeypatch.setattr(PPOTrainer, "_setup", lambda self: None)
    monkeypatch.setattr(trainer, "_record_placement", lambda: None)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "data": {}}) + "\n" for n in (4, 5)))
    trainer._setup()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == kept


def test_only_a_synchronous_run_knows_its_explorer_from_the_checkpoints_step(explores, monkeypatch) -> None:
    """An asynchronous one may have prompts in verl's queue that wait for it."""
    monkeypatch.setattr(needed, "checkpoint_folder", lambda config: None)
    explores.mode = "colocate_async"
    assert explores._start_explorer_early() is None


def test_the_metric_is_the_slots_of_the_prompts_trained_on(explores, queue, monkeypatch) -> None:
    """Of an asynchronous step at 3: one prompt of step 1 and two of step 2."""
    monkeypatch.setattr("s2l_ext.training.trainer.row_source_metrics", lambda *_, **__: SHARE)
    explores.mode, explores.explorer_gpus_held = "colocate_async", 2
    explores.step_plans = {"p": PromptPlan(1, slots=4), "q": PromptPlan(2, slots=2), "r": PromptPlan(2, slots=2)}
    explores.in_flight.add({"s": PromptPlan(3)})
    found = explores._own_metrics(KVBatchMeta(), 3)
    assert found["s2l/explorer/slots"] == pytest.approx(8 / 3)
    assert (found["s2l/explorer/share"], found["s2l/explorer/gpus_held"]) == (0.25, 2)
    assert found["s2l/plan/lag_mean"] == pytest.approx(4 / 3) and found["s2l/plan/lag_max"] == 2.0
    assert found["s2l/plan/in_flight"] == 1.0


def test_stored_rows_of_a_dropped_group_are_not_counted(explores, monkeypatch) -> None:
    """A synchronous step has plans of every prompt drawn for it; verl filtered the group of ``q``."""
    monkeypatch.setattr("s2l_ext.training.trainer.row_source_metrics", lambda *_, **__: SHARE)
    monkeypatch.setattr("s2l_ext.training.trainer.timed_out_rows", lambda _: {})
    explores.stored, explores.explorer_gpus_held = StepRollouts, 0
    explores.step_plans = {
        "p": PromptPlan(1, slots=4, stored=3, reused=1),
        "q": PromptPlan(1, slots=4, stored=4, reused=2),
        "r_x": PromptPlan(1, slots=4, stored=2),
    }
    keys = ["p_0_0", "p_1_0", "r_x_0_0"]
    found = explores._own_metrics(KVBatchMeta(partition_id="train", keys=keys, tags=[{}] * 3), 1)
    assert (found["s2l/explorer/stored_rows"], found["s2l/explorer/reused_rows"]) == (5.0, 1.0)
    assert found["s2l/explorer/handed_to_learner"] == 3.0


SHARE = {"s2l/source/explorer/rows": 3.0, "s2l/source/learner/rows": 9.0}


def test_lag_is_the_step_minus_the_draw() -> None:
    taken = {"a": PromptPlan(1), "b": PromptPlan(4), "c": PromptPlan(4)}
    found = InFlight().metrics(5, taken)
    assert (found["s2l/plan/lag_mean"], found["s2l/plan/lag_max"]) == (2.0, 4.0)
    assert InFlight().metrics(5, {})["s2l/plan/lag_mean"] == 0.0


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


def observed(queue, trainer) -> KVBatchMeta:
    """The step's rows after the trainer has shown them to its controllers."""
    queue.rows = {
        key: {
            "extra_fields": {"reward_extra_info": {"score": 0.0, "acc": acc}},
            "s2l_source": source,
            "s2l_prefix_len": prefix,
        }
        for key, (acc, source, prefix) in SESSIONS.items()
    }
    batch = queue.batch(padding=("pad_0_0",))
    trainer._observe(batch, {})
    return batch


@pytest.fixture
def combined(trainer_of):
    """A trainer that has an explorer, guidance and a KL coefficient, before the update of the step."""
    trainer = trainer_of("s2l_po/toy", "s2l.guidance={alpha: 0.5}")
    trainer.config.actor_rollout_ref.rollout.n = 4
    trainer.step_plans = {"a": PromptPlan(1, slots=1, index=0), "b": PromptPlan(1, slots=1, index=1)}
    trainer.guidance = SimpleNamespace(observe=lambda *_: None)
    return trainer


def test_the_kl_coefficient_is_from_the_accuracy_of_every_row_but_padding(queue, combined) -> None:
    """4 of 7, whoever sampled them: 0.02 * (tanh(4/7) + 1) / 2 = 0.02 / (1 + exp(-8/7))."""
    combined.step_kl = StepKL(KLConfig(beta=0.02), combined.config)
    batch = observed(queue, combined)
    combined.step_kl.send(batch, combined.sessions)
    assert combined.step_kl.applied["accuracy"] == pytest.approx(4 / 7)
    assert batch.extra_info[KL_BETA_FIELD] == pytest.approx(0.02 / (1 + exp(-8 / 7)))


@pytest.mark.parametrize(("rows", "rates"), [("learner", [0.0, 2 / 3]), ("all", [1 / 3, 0.75])])
def test_pass_rates_count_the_rows_that_are_asked_for(queue, combined, rows: str, rates: list[float]) -> None:
    """The learner's own: one of a (the guided one does not count), three of b."""
    sampler = CurriculumSampler(FileOrder(4, ema=0.5), 4, 2)
    combined.prompts = StepPrompts(CurriculumConfig(type="file_order", rows=rows), sampler)
    observed(queue, combined)
    assert list(combined.prompts.observed.values()) == pytest.approx(rates)
    expected = [0.5 * 0.5 + 0.5 * rate for rate in rates]
    assert sampler.curriculum.pass_rates.rates.tolist() == pytest.approx([*expected, 0.5, 0.5])


def test_sessions_carry_their_source_and_their_guidance(queue, combined) -> None:
    combined.prompts = StepPrompts(CurriculumConfig(type="file_order"), CurriculumSampler(FileOrder(4), 4, 2))
    observed(queue, combined)
    assert combined.sessions == [Session(key[0], *values) for key, values in SESSIONS.items() if key != "pad_0_0"]


def test_missing_rows_are_counted_by_who_was_to_sample_them(queue, combined) -> None:
    """Group a lacks one of three learner rows; a guided row is the learner's."""
    metrics: dict[str, float] = {}
    batch = observed(queue, combined)
    seen: list[float] = []
    combined.guidance = SimpleNamespace(observe=lambda length, sessions: seen.extend([length, len(sessions)]))
    lengths = {"a": 4, "b": 7}
    combined.step_plans = {uid: PromptPlan(1, slots=1, guided=2, length=lengths[uid]) for uid in lengths}
    combined._observe(batch, metrics)
    assert (metrics["s2l/explorer/missing_rows"], metrics["s2l/learner/missing_rows"]) == (0.0, 1.0)
    assert metrics["s2l/explorer/restarts"] == metrics["s2l/explorer/fallback_rows"] == 0.0
    assert seen == [5.5, 7], "the length that the rows were drawn with, and every session"


def test_rows_come_in_the_order_of_draw_session_and_output() -> None:
    """Prompts as they were drawn, not by name; the tenth after the ninth; unknown prompts last."""
    keys = ["new_0_0", "a_10_0", "b_x_0_0", "a_9_1", "a_9_0", "b_x_0_11", "b_x_0_2"]
    assert row_order(["b_x", "a"], keys) == [2, 6, 5, 4, 3, 1, 0]
