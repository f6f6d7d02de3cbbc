"""Answers and golds that users brought: each judged as it should be, and what is read of a gold."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from s2l_ext.errors import DataError
from s2l_ext.rewards.gold_reading import read_gold
from s2l_ext.rewards.math import compute_score, grade

FIXTURES = Path(__file__).parents[1] / "fixtures"


def rows(name):
    return [json.loads(line) for line in (FIXTURES / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("row", rows("user_answers.jsonl"), ids=lambda row: f"{row['id']}-{row['kind']}")
def test_answers_of_users(row):
    assert grade(row["prediction"], row["gold"]) is row["expected"]


@pytest.mark.parametrize(
    ("gold", "right"),
    [
        (3e-05, "0.00003"),
        (4e21, "4000000000000000000000"),
        (7, "7"),
        (np.float64(0.5), "1/2"),
        (np.array(["x+1"]), "1+x"),
    ],
)
def test_a_gold_may_be_a_number_or_a_list_of_one(gold, right):
    assert grade(f"\\boxed{{{right}}}", gold)
    assert not grade("\\boxed{8}", gold)


@pytest.mark.parametrize("gold", [["1", "2"], [], (1, 2), [["a", "b"]]])
def test_a_gold_of_several_is_refused(gold):
    with pytest.raises(DataError, match="which may mean all of them or any"):
        compute_score("gsm8k", "\\boxed{1}", gold)


@pytest.mark.parametrize("gold", [math.nan, math.inf, True, [math.nan]])
def test_a_gold_that_is_no_answer_is_refused(gold):
    with pytest.raises(DataError, match="is no answer. Give text or a finite number"):
        grade("\\boxed{nan}", gold)


@pytest.mark.parametrize(
    ("gold", "kind", "read"),
    [
        ("5", "number", "5"),
        (["0.035\n"], "number", "0.035"),
        (3e-05, "number", "0.00003"),
        ("\\frac{\\pi}{3}", "number", "\\frac{\\pi}{3}"),
        ("7 apples", "number", "7"),
        ("$12$;$\\frac{3}{7}$", "several", "12;\\frac{3}{7}"),
        ("$x=0, \\frac{3 \\pm \\sqrt{17}}{4}$", "several", "x=0, \\frac{3 \\pm \\sqrt{17}}{4}"),
        ("x^2+1", "expression", "x^2+1"),
        ("\\text{Ann}", "text", "\\text{Ann}"),
        ("It is $5$ when $x=3$", "in_part", "x=3"),
        ("x \\equiv 3 \\pmod 7", "unread", "x \\equiv 3 \\pmod 7"),
        ([1, 2], "unread", ""),
        (None, "unread", ""),
        (math.nan, "unread", ""),
    ],
)
def test_what_is_read_of_a_gold(gold, kind, read):
    found = read_gold(gold)
    assert (found.kind, found.read) == (kind, read)


def test_a_gold_that_is_read_in_part_is_right_for_the_same_text_only():
    gold = "It is $5$ when $x=3$"
    assert [grade(f"\\boxed{{{answer}}}", gold) for answer in ("3", "5", "x=3")] == [False, False, False]
    assert grade(f"<answer>{gold}</answer>", gold)


@pytest.mark.slow
@pytest.mark.parametrize("row", rows("adversarial_answers.jsonl"), ids=lambda row: f"{row['id']}-{row['kind']}")
def test_adversarial_answers(row):
    assert grade(row["prediction"], row["gold"]) is row["expected"]


def test_the_adversarial_rows_hold_both_kinds():
    expected = [row["expected"] for row in rows("adversarial_answers.jsonl")]
    assert expected.count(False) >= 133 and expected.count(True) >= 51


def examples():
    """The rows of the page's table: response, gold, whether it is paid."""
    page = (FIXTURES.parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
    table = page.partition("### Paid and not paid")[2].partition("**Golds.**")[0]
    return re.findall(r"^\| `(.+)` \| `(.+)` \| (yes|no) \|$", table, re.MULTILINE)


@pytest.mark.parametrize(("response", "gold", "paid"), examples())
def test_the_examples_of_the_page(response, gold, paid):
    assert grade(response, gold) is (paid == "yes")


def test_the_page_has_examples_of_both_kinds():
    assert [sum(row[2] == paid for row in examples()) for paid in ("yes", "no")] == [15, 29]
