"""A step of a guided run as the driver sees it: its numbers, and what the length learns from it."""

import pytest
import torch
from transfer_queue import KVBatchMeta

from s2l_ext.compose import compose_config
from s2l_ext.config import parse_s2l
from s2l_ext.config.schema import GuidanceConfig, GuidanceLengthConfig
from s2l_ext.errors import DataError
from s2l_ext.trainer import methods
from s2l_ext.trainer.guided import StepGuidance, statistics
from s2l_ext.trainer.in_flight import PromptPlan
from s2l_ext.trainer.outcomes import Session, pass_rates
from s2l_ext.trainer.planning import planned_length
from s2l_ext.trainer.row_metrics import prefix_metrics
from s2l_ext.trainer.s2l_trainer import S2LTrainer

pytestmark = pytest.mark.contract


def test_statistics_by_hand() -> None:
    rows = [
        Session("a", 1.0, "learner", 8),
        Session("a", 0.0, "learner", 6),
        Session("a", 0.0, "learner"),
        Session("b", 0.0, "learner", 8),
        Session("b", 0.0, "learner"),
        Session("b", 1.0, "explorer"),
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


def test_prefix_tokens_by_hand() -> None:
    mask = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0]])
    prefix = torch.tensor([[True, True, False, False, False], [False] * 5])
    found = prefix_metrics(mask, prefix, torch.tensor([4, 3]))
    assert {name.rsplit("/", 1)[1]: value for name, value in found.items()} == {
        "prefix_tokens": 2,
        "prefix_tokens_in_loss": 0,
        "continuation_tokens": 2,
        "continuation_tokens_in_loss": 2,
    }


def guidance(**length) -> StepGuidance:
    config = GuidanceConfig(alpha=0.5, length=GuidanceLengthConfig(**length))
    return StepGuidance(config, group_size=8, total_steps=10)


def test_rule_sees_all_rows_or_the_unguided_ones() -> None:
    rows = [Session("a", 1.0, "learner", 8), Session("a", 0.5, "learner")]
    for signal, accuracy in (("all", 0.75), ("unguided", 0.5)):
        step = guidance(signal=signal)
        step.observe(1, rows)
        assert step.metrics()["s2l/guidance/accuracy"] == accuracy


def plan_of(step: int, length: int, slots: int = 0) -> PromptPlan:
    return PromptPlan(step, slots=slots, guided=min(4, 8 - slots), length=length)


def test_length_of_the_rows_is_the_mean_over_prompts_that_have_guided_sessions() -> None:
    assert planned_length([plan_of(1, 100), plan_of(1, 100), plan_of(2, 40)]) == 80
    assert planned_length([plan_of(1, 100, slots=8), plan_of(2, 40)]) == 40
    assert planned_length([plan_of(1, 100, slots=8)]) == 100


def test_trainer_hands_the_rule_the_length_that_the_rows_were_drawn_with(monkeypatch) -> None:
    """Prompts were drawn with 20 and 40 tokens, the newest length is 10: 30 * 0.5 / 0.25."""
    trainer = S2LTrainer.__new__(S2LTrainer)
    trainer.s2l = parse_s2l({"guidance": {}})
    trainer.guidance = guidance(initial=10, max_length=64)
    trainer.guidance.adaptive.observe(0.5)
    trainer.explorer = trainer.prompts = trainer.step_kl = trainer.lifeline = None
    trainer.config = compose_config("g2rpo_a/toy", [])
    trainer.step_plans = {"a": plan_of(1, 20), "b": plan_of(2, 40)}
    rows = [Session("a", 0.25, "learner", 20), Session("b", 0.25, "learner")]
    monkeypatch.setattr(methods, "sessions_of", lambda *_, **__: rows)
    trainer._observe(KVBatchMeta(partition_id="train", keys=["a_0_0", "b_0_0"], tags=[{}, {}]), {})
    assert trainer.guidance.length(3) == 60


def test_explorer_rows_never_move_the_length() -> None:
    """Explorer right in half, learner in a tenth, nobody learns; slots 8 to 0. Counting all, the hand-over alone would
    lengthen guidance to its bound, or shorten it to a tenth the other way round."""

    def run(signal: str, explorer: float, learner: float) -> list[int]:
        step = guidance(initial=1024, signal=signal)
        for slots in (8, 7, 6, 5, 4, 3, 2, 0, 0):
            acc = [("explorer", explorer)] * slots + [("learner", learner)] * (8 - slots)
            step.observe(step.length(1), [Session("a", value, source) for source, value in acc])
        return step.length(1)

    assert run("all", 0.5, 0.1) == run("all", 0.1, 0.5) == 1024
    assert run("unguided", 0.5, 0.1) == 1024
    assert run("every_source", 0.5, 0.1) == 3072 and run("every_source", 0.1, 0.5) == 96


def test_a_step_of_the_explorer_alone_says_no_accuracy() -> None:
    step = guidance()
    step.observe(3072, [Session("a", 0.5, "explorer")] * 2)
    assert "s2l/guidance/accuracy" not in step.metrics() and step.state_dict()["previous"] == []


def test_decay_counts_steps_from_one_and_needs_no_accuracy() -> None:
    step = guidance(type="linear", initial=100)
    assert [step.length(number) for number in (1, 6, 10)] == [100, 50, 10]
    step.observe(100, [Session("a", None, "learner", 100)])
    assert step.metrics()["s2l/guidance/length"] == 100.0 and step.state_dict() == {}


def test_rule_without_accuracy_is_refused() -> None:
    with pytest.raises(DataError, match="s2l.guidance.length.type=adaptive needs"):
        guidance().observe(1, [Session("a", None, "learner")])


def test_guided_sessions_leave_the_explorer_its_own() -> None:
    step = guidance()
    assert [step.sessions(slots) for slots in (0, 2, 6, 8)] == [4, 4, 2, 0]


def test_pass_rates_leave_guided_rows_out() -> None:
    rows = [Session("a", 1.0, "learner", 8), Session("a", 0.0, "learner")]
    assert pass_rates(rows, "learner") == {"a": 0.0} and pass_rates(rows, "all") == {"a": 0.5}
