"""Sentences without a marked answer that deny, list, bound or scale a value."""

from __future__ import annotations

import pytest

from s2l_ext.rewards.hedges import affirmed
from s2l_ext.rewards.math import compute_score, grade

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
    ("The answer is (3, 5).", "5"),
    ("The answer is [3, 5].", "5"),
    ("The answer is 3+5i.", "3"),
    ("The answer is 2√3.", "2"),
    ("The answer is 2π.", "2"),
    ("The answer is 5x.", "5"),
    ("The answer is x > 5.", "5"),
    ("The answer is - 5.", "5"),
    ("The answer is −5.", "5"),
    ("The answer is minus 5.", "5"),
    ("The answer is 5².", "5"),
    ("The answer is 1e6.", "1"),
    ("The answer is 3:5.", "3"),
    ("The answer is (5, 3).", "(3,5)"),
    ("The answer is 1, 2, 3.", "1,2"),
    ("The answer is (C).", "D"),
    ("The answer is 5 m³.", "125"),
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
    ("The answer is (3, 5).", "(3,5)"),
    ("The answer is 3+5i.", "3+5i"),
    ("The answer is 2√3.", "2\\sqrt{3}"),
    ("The answer is 5x.", "5x"),
    ("The answer is x > 5.", "x>5"),
    ("The answer is −5.", "-5"),
    ("The answer is -$5.", "-5"),
    ("The answer is minus 5.", "-5"),
    ("The answer is 5².", "25"),
    ("The answer is 1e6.", "1000000"),
    ("The answer is 1, 2.", "1,2"),
    ("The answer is (C).", "C"),
    ("The answer is 5 m².", "5"),
    ("The answer is **12**.", "12"),
    ("The answer is 12</s>", "12"),
    ("The answer is $12$ cups of flour.", "12"),
    ("The answer is 5, because 2 + 3 = 5.", "5"),
    ("The answer is 5.\n\nCheck: 2 + 3 = 5.", "5"),
    ("The answer is 5!", "5"),
    ("The answer is 1 000 000.", "1000000"),
)


@pytest.mark.parametrize(("text", "gold"), WRONG)
def test_not_what_the_sentence_says(text, gold):
    assert not grade(text, gold)


@pytest.mark.parametrize(("text", "gold"), RIGHT)
def test_what_the_sentence_says(text, gold):
    assert grade(text, gold)


def test_every_value_of_a_gold_of_several_may_be_named():
    assert grade("So x=3 or x=5.", "3,5")


def test_a_stated_answer_is_not_where_a_mark_is_looked_for():
    found = compute_score("x", "We add. The answer is (3, 5).", "(3,5)")
    assert (found["acc"], found["format_ok"], found["extracted"]) == (1.0, 0.0, "(3, 5)")


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
