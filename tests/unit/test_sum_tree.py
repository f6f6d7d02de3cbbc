"""The tree draws exactly by weight, and its sums never drift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ext.methods.curriculum.sum_tree import CHUNK, FAN_OUT, MAX_ITEMS, TOP_SIZE, SumTree, chunks, fixed_point
from s2l_ext.report.chi_square import chi_square


def tree_of(weights):
    weights = np.asarray(weights, np.int64)
    return SumTree(weights.size, lambda selection: weights[selection])


class EveryNumber:
    """In place of a generator: the numbers 0 to total - 1, once each."""

    def __init__(self):
        self.next = 0

    def integers(self, low, high, size):
        self.next += size
        assert self.next <= high
        return np.arange(self.next - size, self.next)


@pytest.mark.parametrize("weights", [[5], [1, 0, 3], [0, 0, 2], [1] * 64 + [0] * 64 + [7], list(range(200))])
def test_each_item_owns_as_many_numbers_as_its_weight(weights):
    drawn = tree_of(weights).draw(sum(weights), EveryNumber())
    assert np.bincount(drawn, minlength=len(weights)).tolist() == weights


def test_each_item_owns_its_weight_below_several_levels():
    num_items = FAN_OUT * TOP_SIZE + 77
    weights = np.random.default_rng(0).integers(0, 3, num_items)
    tree = tree_of(weights)
    assert [level.size for level in tree.levels] == [4160, 128]
    drawn = tree.draw(int(weights.sum()), EveryNumber())
    assert np.array_equal(np.bincount(drawn, minlength=num_items), weights)


@pytest.mark.parametrize("left_out", [[0], [2, 4], [64, 199, 130], list(range(3, 200))])
def test_items_left_out_own_nothing_and_come_back(left_out):
    weights = np.arange(200)
    tree = tree_of(weights)
    rest = weights.copy()
    rest[left_out] = 0
    drawn = tree.draw(int(rest.sum()), EveryNumber(), without=np.array(left_out))
    assert np.bincount(drawn, minlength=200).tolist() == rest.tolist()
    assert tree.total == weights.sum()


def test_weights_are_fixed_point_and_never_zero():
    assert fixed_point(np.array([0.0, 1e-300, 0.25, 1.0])).tolist() == [1, 1, 2**30, 2**32]


def test_total_is_exact():
    weights = np.random.default_rng(1).integers(1, 2**32, 5000)
    assert tree_of(weights).total == sum(int(weight) for weight in weights)


@given(
    num_items=st.integers(1, 9000),
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 300), max_size=5),
)
def test_a_changed_tree_equals_a_rebuilt_one(num_items, seed, sizes):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 2**32, num_items)
    tree = SumTree(num_items, lambda selection: weights[selection])
    for size in sizes:
        indices = rng.choice(num_items, min(size, num_items), replace=False)
        before = weights[indices]
        weights[indices] = rng.integers(0, 2**32, indices.size)
        tree.change(indices, before, weights[indices])
    rebuilt = SumTree(num_items, lambda selection: weights[selection])
    assert all(np.array_equal(a, b) for a, b in zip(tree.levels, rebuilt.levels, strict=True))


def test_draws_follow_the_weights():
    weights = np.random.default_rng(2).integers(1, 1000, 3000)
    drawn = tree_of(weights).draw(1_000_000, np.random.default_rng(3))
    assert chi_square(np.bincount(drawn, minlength=3000), weights).p > 1e-4


def test_a_forgotten_change_is_noticed():
    weights = np.full(100, 2**32)
    tree = SumTree(100, lambda selection: weights[selection])
    weights[:] = 1
    with pytest.raises(RuntimeError, match="SumTree.change"):
        tree.draw(10, np.random.default_rng(0))


@pytest.mark.parametrize("num_items", [0, -1, MAX_ITEMS + 1])
def test_impossible_sizes_are_refused(num_items):
    with pytest.raises(ValueError, match=f"num_items={num_items} "):
        SumTree(num_items, lambda selection: np.zeros(0, np.int64))


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="all 3 weights are 0"):
        tree_of([0, 0, 0]).draw(1, np.random.default_rng(0))
    tree = tree_of([0, 5])
    with pytest.raises(ValueError, match="all 1 weights are 0"):
        tree.draw(1, np.random.default_rng(0), without=np.array([1]))
    assert tree.draw(1, np.random.default_rng(0)).tolist() == [1]


def test_chunks_cover_everything_once():
    parts = list(chunks(2 * CHUNK + 5))
    assert [part.start for part in parts] == [0, CHUNK, 2 * CHUNK]
    assert parts[-1].stop == 2 * CHUNK + 5
    assert CHUNK % FAN_OUT == 0


def test_leaves_beyond_the_last_item_weigh_nothing():
    """Of 66 items the second block has two."""
    tree = tree_of(np.arange(1, 67))
    leaves = tree._leaves(np.array([1, 0]), np.array([3]))
    assert leaves[0].tolist() == [65, 66] + [0] * 62
    assert leaves[1].tolist() == [1, 2, 3, 0, *range(5, 65)]
