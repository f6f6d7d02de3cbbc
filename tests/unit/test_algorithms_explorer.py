"""Slots of S2L-PO against the table of the paper (Algorithm 1, worked out by hand)."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ext.errors import ConfigError
from s2l_ext.methods.explorer.schedule import SCHEDULES, HardSwitch, LinearAnnealing


@pytest.mark.parametrize(
    ("group_size", "mix_steps", "slots"),
    [
        (16, 8, [16, 14, 12, 10, 7, 5, 3, 0]),
        (16, 5, [16, 12, 8, 4, 0]),
        (8, 8, [8, 7, 6, 5, 4, 3, 2, 0]),
        (8, 4, [8, 6, 3, 0]),
        (4, 2, [4, 0]),
    ],
)
def test_slots_equal_the_paper(group_size, mix_steps, slots):
    schedule = LinearAnnealing(mix_steps, group_size)
    assert [schedule.slots(step) for step in range(1, mix_steps + 1)] == slots
    assert schedule.table(mix_steps + 3) == [*slots, 0, 0, 0]


def test_a_single_mixed_step_is_the_explorer_alone():
    assert LinearAnnealing(mix_steps=1, group_size=6).table(3) == [6, 0, 0]


def test_slots_are_rounded_up():
    schedule = LinearAnnealing(mix_steps=8, group_size=16)
    assert [schedule.slots(step) for step in (1, 5, 9)] == [16, 7, 0]  # alpha of step 5 is 3/7: 6.86 slots
    assert sum(schedule.table(16)) / 256 == pytest.approx(0.262, abs=5e-4)


def test_a_hard_switch_is_the_explorer_alone_and_then_the_learner_alone():
    """The explorer's last step is ``mix_steps``: half of a run of 16 at 8."""
    assert HardSwitch(8, 16).table(16) == [16] * 8 + [0] * 8
    assert HardSwitch(1, 6).table(3) == [6, 0, 0]
    assert SCHEDULES["hard_switch"](2, 4) == HardSwitch(2, 4)
    assert SCHEDULES["linear"](2, 4) == LinearAnnealing(2, 4) and SCHEDULES["constant"](2, 4).slots(9) == 4


@given(mix_steps=st.integers(2, 200), group_size=st.integers(1, 256))
def test_floating_error_never_adds_a_slot(mix_steps, group_size):
    schedule = LinearAnnealing(mix_steps, group_size)
    for step in range(1, mix_steps + 1):
        exact = Fraction(mix_steps - step, mix_steps - 1) * group_size
        assert schedule.slots(step) == math.ceil(exact)


@given(mix_steps=st.integers(1, 50), group_size=st.integers(1, 64))
def test_slots_only_fall_and_stay_at_zero(mix_steps, group_size):
    table = LinearAnnealing(mix_steps, group_size).table(mix_steps + 5)
    assert table[0] == group_size
    assert table == sorted(table, reverse=True)
    assert set(table[mix_steps:]) == {0}


@pytest.mark.parametrize("schedule", [LinearAnnealing, HardSwitch])
@pytest.mark.parametrize(("mix_steps", "group_size"), [(0, 8), (-1, 8), (8, 0)])
def test_impossible_arguments_are_refused(schedule, mix_steps, group_size):
    with pytest.raises(ConfigError, match=r"=-?[01]"):
        schedule(mix_steps, group_size)


@pytest.mark.parametrize("schedule", [LinearAnnealing, HardSwitch])
def test_steps_count_from_one(schedule):
    with pytest.raises(ValueError, match="step=0"):
        schedule(8, 16).slots(0)
