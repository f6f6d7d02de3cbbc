"""Sentences without a marked answer that deny, list, bound or scale a value."""

from __future__ import annotations

import pytest

from s2l_ext.rewards.hedges import affirmed
from s2l_ext.rewards.math import grade

WRONG = (
    ("The answer is not 5; it is 3.", "5"),
    ("So x=3 or x=5.", "5"),
    ("So x=3 or x=5.", "3"),
    ("The possible values are $3$, $4$, and $5$.", "5"),
    ("It costs at least 5 dollars.", "5"),
    ("It costs 5 million dollars.", "5"),
    ("The answer is 3, not 5.", "5"),
    ("So x=3 and x=5.", "5"),
    ("The values are 3, 4, and 5.", "5"),
    ("The answer is not 5 but 3.", "5"),
    ("It isn't 5, it's 3.", "5"),
    ("It costs no more than 5 dollars.", "5"),
    ("It takes 5 hundred thousand years.", "5"),
    ("It is 3 rather than 5.", "5"),
    ("The answer is $5$, not $3$.", "3"),
)
RIGHT = (
    ("The answer is not 5; it is 3.", "3"),
    ("The answer is 3, not 5.", "3"),
    ("The answer is 5.", "5"),
    ("It costs 5 dollars.", "5"),
    ("There are 3 boys, 4 girls and 5 adults, so 12 people.", "12"),
    ("If x=3 or x=5, then the sum is 8.", "8"),
    ("It is not 3. It is 5.", "5"),
    ("The answer is not 5 but 3.", "3"),
    ("At least 3 of them are red, so the total is 5.", "5"),
    ("It is 3 rather than 5.", "3"),
    ("We do not have 4 apples, so the answer is 5.", "5"),
    ("The answer is $5$, not $3$.", "5"),
)


@pytest.mark.parametrize(("text", "gold"), WRONG)
def test_not_what_the_sentence_says(text, gold):
    assert not grade(text, gold)


@pytest.mark.parametrize(("text", "gold"), RIGHT)
def test_what_the_sentence_says(text, gold):
    assert grade(text, gold)


def test_every_value_of_a_gold_of_several_may_be_named():
    assert grade("So x=3 or x=5.", "3,5")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The answer is not 5; it is 3.", "The answer is 3."),
        ("It isn't 5, it's 3.", "It is 3."),
        ("The answer is $5$, not $3$.", "The answer is $5$."),
        ("It is not 3. It is 5.", "It is not 3. It is 5."),
        ("We do not have 4 apples, so it is 5.", "We do not have 4 apples, so it is 5."),
    ],
)
def test_a_denied_value_is_left_out(text, left):
    assert affirmed(text) == left
