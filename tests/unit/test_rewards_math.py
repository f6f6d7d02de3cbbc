"""The mathematical judge: real labelled rows, extraction order, and garbage that must not hang or raise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ext.rewards.math import SHOWN_CHARS, TAIL_CHARS, compute_score, grade, marked_answer

SLICE = Path(__file__).parents[1] / "fixtures" / "grader_slice.jsonl"
CASES = [json.loads(line) for line in SLICE.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_labelled_rows(case):
    assert grade(case["prediction"], case["gold"]) is case["correct"]


def test_the_slice_holds_both_labels():
    assert {case["correct"] for case in CASES} == {True, False}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("first \\boxed{1}, no: \\boxed{\\frac{1}{2}} done", "\\frac{1}{2}"),
        ("\\boxed{72}\n#### 5\n<answer>6</answer>", "6"),
        ("<answer>6</answer>\n#### 5", "5"),
        ("#### 4\n#### 5", "5"),
        ("<answer>1</answer> <answer> 6\n</answer>", "6"),
        (
            "so \\boxed{k = 45} \\quad \\text{and} \\quad \\boxed{n = 2}.",
            "\\boxed{k = 45} \\quad \\text{and} \\quad \\boxed{n = 2}",
        ),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\fbox{5}", "5"),
        ("\\fbox{1} and \\boxed {2}", "\\boxed{1} and \\boxed{2}"),
        ("cut off: \\boxed{7", None),
        ("#### \nnothing", None),
        ("A: 72", None),
    ],
)
def test_marked_answer(text, answer):
    assert marked_answer(text) == answer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("\\boxed{72}", "72", True),
        ("so it is \\fbox{72}.", "72", True),
        ("\\boxed{28\\%}", "28\\%", True),
        ("\\boxed{28\\%}", "28", True),
        ("\\boxed{28\\%}", "0.28", True),
        ("\\boxed{28\\%}", "2.8", False),
        ("\\boxed{073}", "72", False),
        ("\\boxed{1,234}", "1234", True),
        ("\\boxed{\\$18.00}", "18", True),
        ("#### 1/2", "0.5", True),
        ("\\boxed{\\frac{2}{4}}", "\\frac{1}{2}", True),
        ("\\boxed{[0,1)}", "[0,1)", True),
        ("\\boxed{[0,1]}", "[0,1)", False),
        ("[0,1]", "[0,1)", False),
        ("\\boxed{x^2+2x+1}", "(x+1)^2", True),
        ("A: 26", "18", False),
        ("She makes 18 dollars a day.", "18", True),
        ("\\boxed{n = 3}", "4", False),
        ("\\boxed{}", "4", False),
        ("", "4", False),
        ("4", "", False),
    ],
)
def test_grade(prediction, gold, right):
    assert grade(prediction, gold) is right


def test_scores_are_what_verl_reads():
    assert compute_score("gsm8k", "so \\boxed{72}", "72", {"index": 1}, reward_router_address="host:1") == {
        "score": 1.0,
        "acc": 1.0,
        "format_ok": 1.0,
        "extracted": "72",
        "timed_out": 0.0,
    }
    unmarked = compute_score("gsm8k", "It is 72", "71")
    assert (unmarked["score"], unmarked["format_ok"], unmarked["extracted"]) == (0.0, 0.0, "72")


@pytest.mark.slow
def test_extracted_is_cut():
    assert len(compute_score("gsm8k", f"\\boxed{{{'x' * 1000}}}", "72")["extracted"]) == SHOWN_CHARS


def test_a_mark_is_found_anywhere_and_an_unmarked_answer_in_the_tail():
    filler = "word " * (TAIL_CHARS // 4)
    assert grade(filler * 200 + "\\boxed{7}", "7")
    assert compute_score("gsm8k", "\\boxed{7}" + filler, "7")["format_ok"] == 1.0
    assert not grade("It is 7" + "\n" + filler, "7")


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        7,
        "\x00\ud800",
        "\\boxed{" * 500,
        "$" * 3000,
        "(" * 3000,
        "\\frac{" * 300,
        "1+" * 2000 + "\\",
        "\\boxed{\\}",
    ],
)
def test_garbage_scores_zero(garbage):
    assert compute_score("gsm8k", garbage, "72")["score"] == 0.0


@pytest.mark.slow
@given(st.text(max_size=60), st.text(max_size=10))
@settings(max_examples=40, deadline=None)
def test_never_raises(prediction, gold):
    assert grade(prediction, gold) in (True, False)
    assert set(compute_score("gsm8k", prediction, gold)) == {"score", "acc", "format_ok", "extracted", "timed_out"}


def test_import_is_light():
    script = "import sys, s2l_ext.rewards.math; print('math_verify' in sys.modules, 'sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
