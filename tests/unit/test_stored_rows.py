"""Stored rollouts are taken once each, in a seeded order, and what happens when too few are left."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ext.errors import DataError
from s2l_ext.methods.explorer.stored_rollouts import StoredDraw, StoredRollouts


def test_every_rollout_once_before_any_twice():
    draws = StoredRollouts({"a": 6}, "reuse", seed=3)
    first = [number for _ in range(3) for number in draws.take("a", 2).indices]
    assert sorted(first) == [0, 1, 2, 3, 4, 5]
    again = draws.take("a", 2)
    assert again.num_reused == 2 and len(set(again.indices)) == 2


def test_a_round_that_does_not_divide_is_left_before_its_end():
    """Five rollouts in twos: the fifth of the first round is never taken, the third group is of the second round."""
    draws = StoredRollouts({"a": 5}, "reuse", seed=3)
    groups = [draws.take("a", 2) for _ in range(5)]
    assert [one.num_reused for one in groups] == [0, 0, 2, 2, 2]
    assert draws.state_dict() == {"used": {"a": 12}}
    assert len({*groups[0].indices, *groups[1].indices}) == len({*groups[2].indices, *groups[3].indices}) == 4


def test_groups_of_another_prompt_or_seed_have_another_order():
    def orders(seed: int) -> list[list[int]]:
        draws = StoredRollouts({"a": 32, "b": 32}, seed=seed)
        return [draws.take("a", 8).indices, draws.take("b", 8).indices]

    assert orders(1)[0] == [1, 3, 8, 10, 14, 15, 17, 23], "the same in every process, or a resumed run draws others"
    assert orders(1)[0] != orders(1)[1] and orders(1)[0] != orders(2)[0]


def test_too_few_is_an_error_that_names_prompt_and_numbers():
    draws = StoredRollouts({"p7": 5}, "error")
    draws.take("p7", 3)
    with pytest.raises(DataError, match=r"prompt p7: the step needs 3 stored rollouts, 2 of 5 are left.*on_exhausted"):
        draws.take("p7", 3)
    with pytest.raises(DataError, match=r"prompt other: .* 0 of 0"):
        draws.take("other", 1)


def test_a_run_that_ran_out_goes_on_under_another_policy():
    draws = StoredRollouts({"a": 5}, "error", seed=1)
    first = draws.take("a", 3).indices
    for policy, size in (("learner", 2), ("reuse", 3)):
        other = StoredRollouts({"a": 5}, policy, seed=1)
        other.load_state_dict(draws.state_dict())
        found = other.take("a", 3)
        assert len(found.indices) == size and (policy == "reuse" or not {*found.indices} & {*first})


def test_the_learner_takes_over_what_is_missing():
    draws = StoredRollouts({"a": 5}, "learner")
    sizes = [len(draws.take("a", 3).indices) for _ in range(3)]
    assert sizes == [3, 2, 0]
    assert draws.take("unknown", 3) == StoredDraw([])


def test_reuse_starts_a_round_of_its_own_rather_than_take_a_rollout_twice_into_one_group():
    draws = StoredRollouts({"a": 5}, "reuse")
    groups = [draws.take("a", 3).indices for _ in range(20)]
    assert all(len(set(group)) == 3 for group in groups)


def test_reuse_repeats_inside_a_group_only_when_the_store_is_smaller_than_the_group():
    taken = StoredRollouts({"a": 3}, "reuse").take("a", 8)
    assert [taken.indices.count(number) for number in range(3)] in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    assert taken.num_reused == 5
    with pytest.raises(DataError, match="0 of 0"):
        StoredRollouts({}, "reuse").take("a", 1)


@given(
    have=st.integers(1, 12),
    wants=st.lists(st.integers(0, 12), max_size=12),
    stop=st.integers(0, 12),
    policy=st.sampled_from(["reuse", "learner"]),
)
def test_a_run_resumed_from_its_saved_state_takes_the_same(have, wants, stop, policy):
    whole = StoredRollouts({"a": have}, policy, seed=5)
    groups = [whole.take("a", wanted) for wanted in wants]
    first = StoredRollouts({"a": have}, policy, seed=5)
    for wanted in wants[:stop]:
        first.take("a", wanted)
    second = StoredRollouts({"a": have}, policy, seed=5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.take("a", wanted) for wanted in wants[stop:]] == groups[stop:]


@given(have=st.integers(1, 10), wants=st.lists(st.integers(1, 10), max_size=10))
def test_no_rollout_twice_in_a_group_that_the_store_can_fill(have, wants):
    draws = StoredRollouts({"a": have}, "reuse")
    for wanted in wants:
        taken = draws.take("a", wanted)
        assert len(taken.indices) == wanted and set(taken.indices) <= set(range(have))
        if wanted <= have:
            assert len(set(taken.indices)) == wanted
