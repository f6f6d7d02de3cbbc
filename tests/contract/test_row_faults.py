"""Rows and sampling after a failure, as the driver sees them; without a run."""

import pytest
from transfer_queue import KVBatchMeta

from s2l_ext.errors import S2LError
from s2l_ext.training import corrections, faults
from s2l_ext.training.row_metrics import require_learner_rows
from s2l_ext.training.waiting import Waiting

pytestmark = pytest.mark.contract


def rows(*keys: str) -> KVBatchMeta:
    return KVBatchMeta(partition_id="train", keys=list(keys), tags=[{} for _ in keys])


def test_rows_that_changed_their_sampler_are_found(monkeypatch) -> None:
    def get(keys, partition_id, select_fields):
        assert keys == ["a_0_0", "a_1_0", "b_0_0"]
        return {"s2l_source": ["learner", "explorer", "learner"]}

    monkeypatch.setattr(faults.tq, "kv_batch_get", get)
    batch = rows("a_0_0", "a_1_0", "a_2_0", "b_0_0", "b_1_0")
    assert faults.fallback_rows(batch, {"a": 2, "b": 1}) == ["a_0_0", "b_0_0"]
    assert faults.fallback_rows(batch, {"a": 0, "b": 0}) == []


def test_a_group_in_which_a_row_was_left_alone_stays_whole(monkeypatch) -> None:
    """Group a: one explorer row is left of two. Group b: the same, but planned so. Group c: two of each."""
    uids = ["a"] * 3 + ["b"] * 3 + ["c"] * 4
    sources = ["explorer", "learner", "learner"] * 2 + ["explorer", "explorer", "learner", "learner"]
    put: list[list[str]] = []
    monkeypatch.setattr(corrections.tq, "kv_batch_get", lambda **_: {"uid": uids, "s2l_source": sources})
    monkeypatch.setattr(corrections, "_put_uids", lambda batch, names: put.append(names))
    with corrections.grouped_by_source(rows(), changed={"a", "c"}):
        pass
    both = ["explorer", "learner"]
    assert put[0] == ["a"] * 3 + ["b/explorer", "b/learner", "b/learner"] + [f"c/{one}" for one in both for _ in "12"]
    assert put[1] == uids


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
    faults.watch_sampling(buffer, check, Waiting(lambda: ([], 0), dict))
    assert buffer.sample() == "batch" and buffer.polls == 1
    with pytest.raises(RuntimeError, match="materializable"):
        buffer.sample(fail=True)
    problem.append(S2LError("the explorer failed"))
    with pytest.raises(S2LError, match="the explorer failed"):
        buffer.sample()
    assert buffer.polls == 2


def test_failed_sessions_of_the_learner_are_counted_and_none_at_all_ends_the_run() -> None:
    """Groups of three, the explorer's first session in group a: 2 + 3 are the learner's."""
    slots = {"a": 1, "b": 0}
    whole = rows("a_0_0", "a_1_0", "a_2_0", "b_0_0", "b_1_0", "b_2_0")
    assert require_learner_rows(whole, slots, 3) == {"s2l/learner/missing_rows": 0.0}
    assert require_learner_rows(rows("a_0_0", "a_2_0", "b_1_0"), slots, 3) == {"s2l/learner/missing_rows": 3.0}
    assert require_learner_rows(rows("a_0_0"), {"a": 3}, 3) == {"s2l/learner/missing_rows": 0.0}
    with pytest.raises(S2LError, match="none of the step's 2 learner sessions gave a row"):
        require_learner_rows(rows("a_0_0"), slots, 3)
