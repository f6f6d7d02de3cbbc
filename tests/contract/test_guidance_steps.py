"""A step of a guided run as the driver sees it: its numbers, and what the length learns from it."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from s2l_ext.errors import DataError, StateMismatch
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.guidance.behaviour_log_probs import take_guidance_for_the_learners
from s2l_ext.methods.guidance.config import AdaptiveLength, AnyLength, ConstantLength, GuidanceConfig, LinearLength
from s2l_ext.methods.guidance.controller import Guidance, planned_length, statistics
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training import controller_state as state
from s2l_ext.training.batch_fields import GUIDED_FIELD
from s2l_ext.training.outcomes import RolloutOutcome, pass_rates
from s2l_ext.training.pending_prompts import Draw, PromptPlan
from s2l_ext.training.step import Step, StepRows

pytestmark = pytest.mark.contract


def test_statistics_by_hand() -> None:
    rows = [
        RolloutOutcome("a", 1.0, "learner", 8),
        RolloutOutcome("a", 0.0, "learner", 6),
        RolloutOutcome("a", 0.0, "learner"),
        RolloutOutcome("b", 0.0, "learner", 8),
        RolloutOutcome("b", 0.0, "learner"),
        RolloutOutcome("b", 1.0, "explorer"),
    ]
    found = statistics(rows)
    assert (found["guided_rows"], found["applied_mean"], found["applied_min"], found["applied_max"]) == (
        3,
        22 / 3,
        6,
        8,
    )
    assert (found["acc_guided"], found["acc_unguided"]) == (pytest.approx(1 / 3), 0.0)
    assert (found["groups_with_signal"], found["unguided_groups_with_signal"]) == (1.0, 0.0)


def test_guidance_stands_at_the_head_of_a_sessions_first_output_only() -> None:
    rows = StepRows(["a_0_0", "a_0_1", "b_10_0", "b_10_10"], ["learner"] * 4, [7, 7, 5, 5], None, [{}] * 4)
    assert rows.prefix_len_B == [7, 0, 5, 0]


def started(config: GuidanceConfig, steps: int = 10, explorer: dict | None = None) -> Guidance:
    """Guidance of groups of eight in a run of so many steps, beside an explorer or not."""
    cfg = compose_config("g2rpo_a/toy", ["actor_rollout_ref.rollout.n=8"])
    s2l = parse_s2l({"explorer": explorer})
    guidance = Guidance(config, dataclasses.replace(s2l, guidance=config), cfg)
    guidance.start(SimpleNamespace(total_training_steps=steps, steps_per_epoch=steps, config=cfg))
    return guidance


def guidance(kind: type[AnyLength] = AdaptiveLength, **length) -> Guidance:
    return started(GuidanceConfig(alpha=0.5, length=kind(**length)))


def said(guidance: Guidance) -> dict[str, float]:
    return guidance.metrics(Step(1, KVBatchMeta(), {}, {}, StepRows([], [], [], None, [])))


def test_rule_sees_all_rows_or_the_unguided_ones() -> None:
    rows = [RolloutOutcome("a", 1.0, "learner", 8), RolloutOutcome("a", 0.5, "learner")]
    for signal, accuracy in (("learner", 0.75), ("learner_unguided", 0.5)):
        step = guidance(estimate_from=signal)
        step.learn(1, rows)
        assert said(step)["s2l/guidance/accuracy"] == accuracy
        assert said(step)["s2l/guidance/estimate_rows"] == {"learner": 2, "learner_unguided": 1}[signal]


def plan_of(step: int, length: int, slots: int = 0) -> PromptPlan:
    return PromptPlan(step, slots=slots, guided=min(4, 8 - slots), length=length)


def test_length_of_the_rows_is_the_mean_over_prompts_that_have_guided_sessions() -> None:
    assert planned_length([plan_of(1, 100), plan_of(1, 100), plan_of(2, 40)]) == 80
    assert planned_length([plan_of(1, 100, slots=8), plan_of(2, 40)]) == 40
    assert planned_length([plan_of(1, 100, slots=8)]) == 100


def test_trainer_hands_the_rule_the_length_that_the_rows_were_drawn_with(queue, trainer_of) -> None:
    """Prompts were drawn with 20 and 40 tokens, the newest length is 10: 30 * 0.5 / 0.25."""
    trainer = trainer_of("g2rpo_a/toy")
    trainer.methods = [step] = [guidance(initial=10, max_length=64)]
    step.rule.observe(0.5)
    trainer.step_plans = {"a": plan_of(1, 20), "b": plan_of(2, 40)}
    outcome = {"extra_fields": {"reward_extra_info": {"score": 0.0, "acc": 0.25}}, "rm_scores": [0.0]}
    for name, prefix in (("a_0_0", 20), ("b_0_0", 0)):
        queue.rows[name] = outcome | {"s2l_source": "learner", "s2l_prefix_len": prefix}
    seen = trainer._observe(queue.batch(), {}).outcomes
    assert seen == [RolloutOutcome("a", 0.25, "learner", 20), RolloutOutcome("b", 0.25, "learner")]
    assert step.rule.at(3) == 60


def test_explorer_rows_never_move_the_length() -> None:
    """Explorer right in half, learner in a tenth, nobody learns; slots 8 to 0. Counting all, the hand-over alone would
    lengthen guidance to its bound, or shorten it to a tenth the other way round."""

    def run(signal: str, explorer: float, learner: float) -> list[int]:
        step = guidance(initial=1024, estimate_from=signal)
        for slots in (8, 7, 6, 5, 4, 3, 2, 0, 0):
            acc = [("explorer", explorer)] * slots + [("learner", learner)] * (8 - slots)
            step.learn(step.rule.at(1), [RolloutOutcome("a", value, source) for source, value in acc])
        return step.rule.at(1)

    assert run("learner", 0.5, 0.1) == run("learner", 0.1, 0.5) == 1024
    assert run("learner_unguided", 0.5, 0.1) == 1024
    assert run("all", 0.5, 0.1) == 3072 and run("all", 0.1, 0.5) == 96


LINEAR = {"model_path": "small", "mix_steps": 8}


def handed_over(step: Guidance, slots: int, guided: int) -> list[RolloutOutcome]:
    """Nobody learns: guided rows are right in 0.6, the learner's others in 0.2."""
    guided = min(guided, 8 - slots)
    rows = [RolloutOutcome("a", 0.5, "explorer")] * slots + [RolloutOutcome("a", 0.6, "learner", 9)] * guided
    return rows + [RolloutOutcome("a", 0.2, "learner")] * (8 - slots - guided)


def test_the_hand_over_does_not_move_the_length() -> None:
    """Of 8, 7, 6, 5, 4, 3, 2, 1, 0 left to the explorer, at most 4 of the rest guided. The mean falls from 0.6 to 0.4:
    by it the length would go from 1024 to 1895. Each kind by its share, 4 of 8, it is 0.4 from step 6 on."""
    step = started(GuidanceConfig(alpha=0.5, length=AdaptiveLength(initial=1024)), explorer=LINEAR)
    told = []
    for slots in (8, 7, 6, 5, 4, 3, 2, 1, 0, 0):
        step.learn(step.rule.at(1), handed_over(step, slots, 4))
        told.append((said(step).get("s2l/guidance/accuracy"), said(step)["s2l/guidance/estimate_rows"]))
    assert told[:5] == [(None, 0)] * 5, "guided rows alone wait for others"
    assert told[5:] == [(pytest.approx(0.4), rows) for rows in (5, 6, 7, 8, 8)]
    assert step.rule.at(1) == 1024


def test_beside_an_explorer_rows_without_guidance_count_alone_where_the_length_is_0() -> None:
    step = started(GuidanceConfig(alpha=0.5, length=AdaptiveLength(min_length=0)), explorer=LINEAR)
    step.learn(0, [RolloutOutcome("a", 0.25, "learner")] * 5)
    assert said(step)["s2l/guidance/accuracy"] == 0.25


def test_a_step_of_the_explorer_alone_says_no_accuracy() -> None:
    step = guidance()
    step.learn(3072, [RolloutOutcome("a", 0.5, "explorer")] * 2)
    assert "s2l/guidance/accuracy" not in said(step) and step.state_dict()["previous"] == []
    assert said(step)["s2l/guidance/estimate_rows"] == 0


def test_decay_counts_steps_from_one_and_needs_no_accuracy() -> None:
    step = guidance(LinearLength, initial=100)
    assert [step.rule.at(number) for number in (1, 6, 10)] == [100, 50, 10]
    step.learn(100, [RolloutOutcome("a", None, "learner", 100)])
    assert said(step)["s2l/guidance/length"] == 100.0 and step.state_dict() == {"total_steps": 10}


def test_a_decay_falls_over_the_steps_that_the_run_really_has(monkeypatch, trainer_of) -> None:
    """Five steps in the only epoch end a run that was to have 300: the length is 12 * (1 - 4 / 5) at the last."""
    trainer = trainer_of("g2rpo_a/toy", "trainer.total_epochs=1")
    trainer.methods = [step] = [Guidance(parse_s2l(DECAY).guidance, parse_s2l(DECAY), trainer.config)]

    def verls(self) -> None:
        self.total_training_steps, self.steps_per_epoch, self.train_dataset = 300, 5, range(80)

    monkeypatch.setattr(PPOTrainer, "_init_dataloader", verls)
    trainer._init_dataloader()
    assert [step.rule.at(number) for number in range(1, 6)] == [12, 10, 7, 5, 2]
    trainer.resumed = {"guidance": step.state_dict()}
    trainer._init_dataloader()
    trainer.config.trainer.total_epochs = 2
    with pytest.raises(StateMismatch, match="the checkpoint's run had 5, this one has 10"):
        trainer._init_dataloader()
    trainer.resumed = {"guidance": {}}  # a checkpoint of an earlier version
    trainer._init_dataloader()


def test_a_resumed_rule_goes_on_with_its_length_and_a_constant_one_keeps_nothing() -> None:
    first, resumed = (guidance(initial=100, max_length=300) for _ in range(2))
    first.rule.observe(0.8)
    first.rule.observe(0.4)
    assert first.rule.at(3) == 200  # 100 * 0.8 / 0.4
    resumed.load_state_dict(first.state_dict())
    assert resumed.rule.at(3) == 200
    constant = guidance(ConstantLength, initial=100)
    assert constant.state_dict() == {}
    constant.load_state_dict({})
    assert constant.rule.at(7) == 100


def test_only_the_steps_that_a_decay_really_has_decide_whether_it_goes_on(tmp_path) -> None:
    """A checkpoint of 300 steps that one epoch cut to 5 goes on as one of 1,000 that the epoch cuts to 5."""
    s2l = parse_s2l(DECAY)
    first, longer = (
        compose_config(
            "g2rpo_a/toy", [f"trainer.total_training_steps={steps}", f"trainer.default_local_dir={tmp_path}"]
        )
        for steps in (300, 1000)
    )
    written = {"guidance": started(s2l.guidance, 5).state_dict()}
    state.save_state(tmp_path / "global_step_2", state.fingerprint(s2l, first), written)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("2")
    saved = state.resume_state(s2l, longer)["guidance"]
    resumed = started(s2l.guidance, 5)
    resumed.load_state_dict(saved)
    assert resumed.rule.at(5) == 2
    with pytest.raises(StateMismatch, match="the checkpoint's run had 5, this one has 10"):
        started(s2l.guidance, 10).load_state_dict(saved)


DECAY = {"guidance": {"length": {"type": "linear", "initial": 12, "max_length": 64}}}


def test_rule_without_accuracy_is_refused() -> None:
    with pytest.raises(DataError, match="s2l.guidance.length.type=adaptive needs"):
        guidance().learn(1, [RolloutOutcome("a", None, "learner")])


def test_guided_sessions_leave_the_explorer_its_own(prompts_drawn) -> None:
    step, planned = guidance(), []
    for slots in (0, 2, 6, 8):
        draw = Draw(prompts_drawn("a"), 1)
        draw.slots = slots
        step.draw(draw)
        planned.append(draw.plans()["a"].guided)
        assert list(draw.batch[GUIDED_FIELD]) == planned[-1:]
    assert planned == [4, 4, 2, 0]


def test_pass_rates_leave_guided_rows_out() -> None:
    rows = [RolloutOutcome("a", 1.0, "learner", 8), RolloutOutcome("a", 0.0, "learner")]
    assert pass_rates(rows, "learner_unguided") == {"a": 0.0} and pass_rates(rows, "all") == {"a": 0.5}


# ---- guidance in the loss, and verl's rollout correction ----------------------------------------------------------

OLD = {"a_0_0": [math.log(0.3)] * 2 + [-1.0, -2.0, -0.5], "a_1_0": [-0.7, -0.6], "a_2_0": [-9.0]}
SAMPLER = {"a_0_0": [0.0, 0.0, -1.2, -1.9, -0.5], "a_1_0": [-0.7, -0.6], "a_2_0": [0.0]}
"""Two guidance tokens at p = 0.3 and three of the learner's own; a plain row; a padding row copied from the first."""


class LogProbs:
    """Stands where the TransferQueue stands."""

    def __init__(self):
        self.batch = KVBatchMeta(partition_id="train", keys=list(OLD), tags=[{}, {}, {"is_padding": True}])
        self.rows = {
            key: {
                "old_log_probs": torch.tensor(OLD[key]),
                "rollout_log_probs": torch.tensor(SAMPLER[key]),
                "response_mask": torch.full((len(OLD[key]),), int(key != "a_2_0")),
                "responses": torch.arange(len(OLD[key])),
            }
            for key in OLD
        }
        self.prefix = {"a_0_0": 2, "a_1_0": 0, "a_2_0": 2}

    @property
    def step(self) -> Step:
        """What the trainer reads before it observes the step; padding is left out."""
        names = [name for name, tag in zip(self.batch.keys, self.batch.tags, strict=True) if not tag]
        prefix = [self.prefix[name] for name in names]
        rows = StepRows(names, ["learner"] * len(names), prefix, None, [{}] * len(names))
        return Step(1, self.batch, {}, {}, rows)

    def kv_batch_get(self, keys, partition_id, select_fields):
        columns = {name: [self.rows[key][name] for key in keys] for name in select_fields}
        nested = {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in columns.items()}
        return TensorDict(nested, batch_size=len(keys))

    def kv_batch_put(self, keys, partition_id, fields):
        for key, row in zip(keys, fields["rollout_log_probs"].unbind(), strict=True):
            self.rows[key]["rollout_log_probs"] = row

    def corrected(self, **settings):
        """verl's own helper on what the queue holds now: weights, mask, metrics of the two real rows."""
        names = ("old_log_probs", "rollout_log_probs", "response_mask")
        padded = self.kv_batch_get(["a_0_0", "a_1_0"], "train", names).to_padded_tensor()
        old, sampler, mask = (padded[name] for name in names)
        weights, mask, metrics = compute_rollout_correction_and_rejection_mask(old, sampler, mask.float(), **settings)
        return weights and weights.batch["rollout_is_weights"], mask, metrics


@pytest.fixture
def held(monkeypatch) -> LogProbs:
    held = LogProbs()
    monkeypatch.setattr(tq, "kv_batch_get", held.kv_batch_get)
    monkeypatch.setattr(tq, "kv_batch_put", held.kv_batch_put)
    return held


def test_verls_corrections_see_ratio_one_on_guidance_tokens(held) -> None:
    """By hand: the own tokens' log-ratios are 0.2, -0.1 and 0."""
    take_guidance_for_the_learners(held.step)
    weights, _, metrics = held.corrected(rollout_is="token")
    e = math.exp
    assert weights[0].tolist() == pytest.approx([1, 1, e(0.2), e(-0.1), 1]) and weights[1, :2].tolist() == [1, 1]
    assert metrics["rollout_corr/k3_kl"] == pytest.approx((e(0.2) - 1.2 + e(-0.1) - 0.9) / 7, rel=1e-5)
    weights, _, _ = held.corrected(rollout_is="sequence")
    assert weights[0].tolist() == pytest.approx([e(0.1)] * 5)
    _, mask, _ = held.corrected(rollout_rs="seq_mean_k1", rollout_rs_threshold="0.9_1.1")
    assert mask.sum(dim=1).tolist() == [5, 2]


def test_without_it_verl_would_weigh_or_reject_the_whole_row(held) -> None:
    weights, _, _ = held.corrected(rollout_is="sequence")
    assert weights[0].tolist() == pytest.approx([0.3 * 0.3 * math.exp(0.1)] * 5)
    _, mask, _ = held.corrected(rollout_rs="seq_mean_k1", rollout_rs_threshold="0.9_1.1")
    assert mask.sum(dim=1).tolist() == [0, 2]


def test_only_guidance_of_a_sessions_first_output_is_taken_over(held) -> None:
    """A padding row is a copy with one token; a later output of a guided session starts from no guidance."""
    metrics = take_guidance_for_the_learners(held.step)
    assert held.rows["a_0_0"]["rollout_log_probs"].tolist() == pytest.approx([*OLD["a_0_0"][:2], -1.2, -1.9, -0.5])
    assert held.rows["a_2_0"]["rollout_log_probs"].tolist() == [0.0]
    e = math.exp  # of the own tokens alone: e^-1 - e^-1.2, e^-1.9 - e^-2, 0, and 0, 0 of the plain row
    assert metrics["training/rollout_probs_diff_max"] == pytest.approx(e(-1.0) - e(-1.2))
    assert metrics["training/rollout_probs_diff_mean"] == pytest.approx((e(-1.0) - e(-1.2) + e(-1.9) - e(-2.0)) / 5)
    assert held.rows["a_0_0"]["response_mask"].tolist() == [1] * 5, "the loss reads them all the same"
    later = LogProbs()
    later.batch.keys[0] = "a_0_1"
    later.rows["a_0_1"], later.prefix["a_0_1"] = later.rows["a_0_0"], 2
    held.rows, held.prefix = later.rows, later.prefix
    assert take_guidance_for_the_learners(later.step) == {}, "nothing changed, so verl's metrics stand"
    assert held.rows["a_0_1"]["rollout_log_probs"].tolist() == pytest.approx(SAMPLER["a_0_0"])
