"""Rows and sampling after a failure, as the driver sees them; without a run."""

from types import SimpleNamespace

import pytest
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from s2l_ext.errors import S2LError
from s2l_ext.methods.explorer import advantage_groups
from s2l_ext.methods.explorer.controller import Explorer
from s2l_ext.platforms.patches.training import watch_sampling
from s2l_ext.training.step import Step, StepRows, require_rows
from s2l_ext.training.waiting import Waiting

pytestmark = pytest.mark.contract


def rows(*keys: str, sources: tuple[str, ...] = ()) -> StepRows:
    return StepRows(list(keys), list(sources), [0] * len(keys), None, [{}] * len(keys))


def test_rows_that_changed_their_sampler_are_found() -> None:
    """Sessions 0 and 1 of group a and session 0 of group b were the explorer's."""
    names = ("a_0_0", "a_1_0", "a_2_0", "b_0_0", "b_1_0")
    trained = rows(*names, sources=("learner", "explorer", "learner", "learner", "learner"))
    step = Step(1, KVBatchMeta(partition_id="train"), metrics={}, plans={}, rows=trained)
    assert Explorer._fallback_rows(step, {"a": range(2), "b": range(1)}) == ["a", "b"]
    assert Explorer._fallback_rows(step, {"a": range(0), "b": range(0)}) == []


def test_a_group_in_which_a_row_was_left_alone_stays_whole(monkeypatch) -> None:
    """Group a: one explorer row is left of two. Group b: the same, but planned so. Group c: two of each."""
    uids = ["a"] * 3 + ["b"] * 3 + ["c"] * 4
    sources = ("explorer", "learner", "learner") * 2 + ("explorer", "explorer", "learner", "learner")
    put: list[list[str]] = []
    monkeypatch.setattr(advantage_groups, "put_values", lambda batch, field, values, keys: put.append(values))
    trained = rows(*(f"{uid}_{number}_0" for number, uid in enumerate(uids)), sources=sources)
    with advantage_groups.grouped_by_source(Step(1, KVBatchMeta(), {}, {}, trained), changed={"a", "c"}):
        pass
    both = ["explorer", "learner"]
    assert put[0] == ["a"] * 3 + ["b/explorer", "b/learner", "b/learner"] + [f"c/{one}" for one in both for _ in "12"]
    assert put[1] == uids


def test_outputs_of_one_session_are_one_row_left_alone(monkeypatch) -> None:
    """The explorer's one session of two outputs has no other to be compared with."""
    put: list[list[str]] = []
    monkeypatch.setattr(advantage_groups, "put_values", lambda batch, field, values, keys: put.append(values))
    trained = rows("a_0_0", "a_0_1", "a_2_0", "a_3_0", sources=("explorer", "explorer", "learner", "learner"))
    with advantage_groups.grouped_by_source(Step(1, KVBatchMeta(), {}, {}, trained), changed={"a"}):
        assert put == [["a"] * 4]


def test_restarts_are_counted_without_any_method_too(trainer_of, monkeypatch) -> None:
    """A time limit of sessions alone has a run watched."""
    monkeypatch.setattr(PPOTrainer, "_compute_advantage", lambda self, batch, metrics: batch)
    trainer, batch, metrics = trainer_of("expo/toy", "s2l.kl=null", "s2l.curriculum=null"), KVBatchMeta(), {}
    trainer.watchdog = SimpleNamespace(restarts=2)
    assert trainer.methods == [] and trainer._compute_advantage(batch, metrics) is batch
    assert metrics == {"s2l/reward/restarts": 2.0}


class Buffer:
    def __init__(self) -> None:
        self.polls = 0

    def _wait_for_next_poll(self, partition_id, last_debug_time):
        self.polls += 1
        return last_debug_time

    def sample(self, fail=False):
        self.pending_keys = self.running_keys = {"train": {"p"}}
        self._wait_for_next_poll("train", 0.0)
        if fail:
            raise RuntimeError("terminal groups with no materializable trajectories")
        return "batch"


def test_sampling_ends_with_what_failed_and_not_with_what_verl_makes_of_it() -> None:
    problem: list[S2LError] = []

    def check() -> None:
        if problem:
            raise problem[0]

    buffer = Buffer()
    waiting = Waiting()
    watch_sampling(buffer, waiting.begin, waiting.look, check)
    assert buffer.sample() == "batch" and buffer.polls == 1
    with pytest.raises(RuntimeError, match="materializable"):
        buffer.sample(fail=True)
    problem.append(S2LError("the explorer failed"))
    with pytest.raises(S2LError, match="the explorer failed"):
        buffer.sample()
    assert buffer.polls == 2


def test_failed_sessions_of_the_learner_are_counted_and_none_at_all_ends_the_run() -> None:
    """Groups of three, the explorer's first session in group a: 2 + 3 are the learner's."""

    def required(*names: str, a: int = 1, filtered: bool = False) -> dict[str, float]:
        planned = {"a": range(a, 3), "b": range(3)}
        return require_rows(rows(*names), planned, "learner", "its server or its router failed", filtered)

    assert required("a_0_0", "a_1_0", "a_2_0", "b_0_0", "b_1_0", "b_2_0") == {"s2l/learner/missing_rows": 0.0}
    assert required("a_0_0", "a_2_0", "b_1_0") == {"s2l/learner/missing_rows": 3.0}
    assert required("a_1_0", "a_2_0") == {"s2l/learner/missing_rows": 3.0}, "group b failed as a whole"
    assert required("a_1_0", filtered=True) == {"s2l/learner/missing_rows": 1.0}, "verl dropped group b"
    assert required("a_0_0", a=3, filtered=True) == {"s2l/learner/missing_rows": 0.0}
    with pytest.raises(S2LError, match="none of the step's 5 learner sessions gave a row"):
        required("a_0_0")
