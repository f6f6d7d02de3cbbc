"""From rows in the TransferQueue to accuracy by batch and by prompt, with a stand-in for the queue."""

import math
import re

import pytest

from s2l_ext.errors import DataError
from s2l_ext.training.outcomes import RolloutOutcome, batch_accuracy, pass_rates
from s2l_ext.training.step import StepRows

pytestmark = pytest.mark.contract


def row(acc: object) -> dict:
    return {"reward_extra_info": {"score": 0.0, **({"acc": acc} if acc is not None else {})}}


@pytest.fixture
def read(queue):
    """``read({key: (acc, source)}, padding=[keys])`` -> sessions."""

    def run(
        rows: dict[str, tuple], padding: tuple[str, ...] = (), with_sources: bool = True, strict: bool = True
    ) -> list[RolloutOutcome]:
        queue.rows = {key: {"extra_fields": row(acc), "s2l_source": source} for key, (acc, source) in rows.items()}
        found = StepRows.of(queue.batch(padding), mixed=with_sources, guided=False)
        return found.outcomes(strict=strict)

    return run


def test_each_session_counts_once_by_its_last_output(read) -> None:
    found = read({"u_0_0": (0, "learner"), "u_0_2": (1, "learner"), "u_0_1": (0, "learner"), "u_1_0": (0, "explorer")})
    assert sorted(found, key=lambda s: s.source) == [
        RolloutOutcome("u", 0.0, "explorer"),
        RolloutOutcome("u", 1.0, "learner"),
    ]


def test_padding_does_not_count(read) -> None:
    found = read({"u_0_0": (1, "learner"), "u_1_0": (0, "learner")}, padding=("u_1_0",))
    assert found == [RolloutOutcome("u", 1.0, "learner")]


def test_without_an_explorer_every_row_is_the_learners(read) -> None:
    assert read({"u_0_0": (0.5, "?")}, with_sources=False) == [RolloutOutcome("u", 0.5, "learner")]


def test_tenth_session_and_output_sort_as_numbers(read) -> None:
    assert read({"u_0_9": (0, "learner"), "u_0_10": (1, "learner")})[0].acc == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5, 1.5, 2, "right", [1]])
def test_accuracy_out_of_range_is_refused_with_the_value(read, value: float) -> None:
    with pytest.raises(DataError, match=f"acc={re.escape(repr(value))}: .*Return the shaped reward as 'score'"):
        read({"u_0_0": (value, "learner")})


@pytest.mark.parametrize("value", [-1.0, math.inf, "right", [1]])
def test_where_accuracy_does_not_count_a_strange_one_is_none(read, value) -> None:
    assert read({"u_0_0": (value, "learner")}, strict=False)[0].acc is None


def test_a_bare_reward_is_no_accuracy(queue) -> None:
    """verl records it as ``acc`` and nothing else."""
    queue.rows = {"u_0_0": {"extra_fields": {"reward_extra_info": {"acc": 0.3}}}}
    found = StepRows.of(queue.batch(), mixed=False, guided=False)
    assert found.outcomes()[0].acc is None


def test_batch_accuracy_is_over_all_sessions_whoever_sampled() -> None:
    sessions = [
        RolloutOutcome("a", 1.0, "learner"),
        RolloutOutcome("a", 0.0, "explorer"),
        RolloutOutcome("b", 1.0, "explorer"),
    ]
    assert batch_accuracy(sessions, "x") == pytest.approx(2 / 3)


@pytest.mark.parametrize("sessions", [[], [RolloutOutcome("a", None, "learner"), RolloutOutcome("a", 1.0, "learner")]])
def test_missing_accuracy_is_refused_by_the_feature_that_needs_it(sessions: list[RolloutOutcome]) -> None:
    with pytest.raises(DataError, match="s2l.kl.type=accuracy needs the verifier's correctness.*'acc' for"):
        batch_accuracy(sessions, "s2l.kl.type=accuracy")


def test_pass_rates_of_the_learner_by_default_and_of_all_on_request() -> None:
    sessions = [
        RolloutOutcome("a", 1.0, "learner"),
        RolloutOutcome("a", 0.0, "learner"),
        RolloutOutcome("a", 0.0, "explorer"),
        RolloutOutcome("b", 1.0, "explorer"),
        RolloutOutcome("c", None, "learner"),
    ]
    assert pass_rates(sessions, "learner") == {"a": 0.5}
    assert pass_rates(sessions, "all") == {"a": pytest.approx(1 / 3), "b": 1.0}
