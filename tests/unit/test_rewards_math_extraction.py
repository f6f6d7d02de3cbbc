"""Where the answer stands: behind the thinking, at the last mark, and in DAPO's last line."""

from __future__ import annotations

import time

import pytest

from s2l_ext.rewards.extraction import boxes, extract, outside_thinking
from s2l_ext.rewards.hedges import hedged
from s2l_ext.rewards.math import compute_score, grade


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),  # the prompt opened it
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>a</think>b<think>c", "b"),
        ("a<think>b", "a"),
        ("<think>a", ""),
        ("a", "a"),
        ("<think>a</think>", ""),
    ],
)
def test_what_is_said_outside_the_thinking(text, said):
    assert outside_thinking(text) == said


def test_a_prompt_that_opens_the_thinking():
    assert (outside_thinking("a \\boxed{3}", opened=True), outside_thinking("a</think>b", opened=True)) == ("", "b")
    assert grade("a \\boxed{3}", "3") and not grade("a \\boxed{3}", "3", thinking="opened")
    assert grade("a</think>\\boxed{3}", "3", thinking="opened")
    found = compute_score("gsm8k", "<think>a \\boxed{3}", "3")
    assert (found["acc"], found["format_ok"], found["extracted"]) == (0.0, 0.0, "")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("try \\boxed{3}? no.\nAnswer: 34", "34"),
        ("Answer: 34\nso \\boxed{3}", "3"),
        ("Answer: $\\boxed{7}$", "7"),
        ("<answer>so \\boxed{5}, that is it</answer>", "5"),
        ("<answer>\nAnswer: 5</answer>", "5"),
        ("\\boxed{6}\n#### 7", "7"),
        ("\\boxed{6}\n#### Step 2: check", "6"),
        ("#### Step 2: check", "Step 2: check"),
        ("#### 20 apples\n", "20 apples"),
        ("#### 20\n\n#### Explanation\nfoo", "20"),
        ("#### Step 2\n#### \\frac{1}{2}\nbye", "\\frac{1}{2}"),
        ("\\boxed{6}\n#### 7 apples", "6"),
        ("**Answer:** 5", "5"),
        ("**Answer: 5**", "5"),
        ("\\textbf{Answer:} 5", "5"),
        ("Answer: 3? No. Answer: 4", "4"),
        ("Answer:\n\\boxed{8}", "8"),
        ("\\boxed{3 is open, \\boxed{34}", "34"),
        ("\\framebox[3cm]{318}", "318"),
        ("<answer>1<answer>2</answer>", "2"),
        ("\\boxed{5}.\n\nLet me verify the answer: $2(5)+3 = 13$. Correct.", "5"),
        ("**Final Answer:** $\\boxed{5}$\n\nNote on the answer: we assumed x is positive.", "5"),
        ("\\boxed{5}\n\n**Check of the answer:** 3 * 5 = 15", "5"),
        ("\\boxed{3}\nSo the final answer: 5", "5"),
        ("\\boxed{3}. No, that is wrong. The correct answer: 5", "5"),
        ("\\boxed{3}\nWait, the answer: 5", "5"),
        ("\\boxed{3}\n- **answer:** 5", "5"),
        ("\\boxed{3} Answer: 5", "5"),
    ],
)
def test_the_last_mark_wins_and_the_inner_of_two(text, answer):
    assert (extract(text, "auto").answer, extract(text, "auto").found) == (answer, True)


@pytest.mark.parametrize(
    ("line", "gold"),
    [("Answer: 34", "34"), ("Answer: 2\\sqrt{3}", "2\\sqrt{3}"), ("Answer: (1,2)", "(1,2)"), ("Answer: $34$.", "34")],
)
def test_the_line_that_dapo_asks_for(line, gold):
    for mode in ("auto", "answer_line"):
        assert grade(f"try \\boxed{{3}}? no.\n{line}", gold, extraction=mode)
        assert not grade(f"try \\boxed{{3}}? no.\n{line}", "3", extraction=mode)
    assert not grade("so \\boxed{34}", "34", extraction="answer_line")


def test_a_sentence_on_the_answer_line_is_read_as_a_sentence():
    assert grade("Answer: The area is 5 square meters.", "5")
    assert not grade("Answer: The area is 5 or 6 square meters.", "5")


def test_boxes_in_boxes_are_one():
    assert boxes("\\boxed{a\\boxed{b}} \\fbox{c}") == [(0, 7, 18), (19, 25, 27)]


@pytest.mark.parametrize(
    "text",
    [
        *("The answer is 3 or 5", "It is not 5", "It is at least $5$.", "x = 3, 5", "The answers are 3 and 5."),
        *("It is 5 million", "It is 5 or more.", "Not sure. It isn't 5"),
    ],
)
def test_a_hedge_is_no_answer(text):
    assert hedged(text) and not grade(text, "5") and not grade(text, "3")


@pytest.mark.parametrize(
    "text", ["It takes 3 or 4 tries. The answer is 5", "It is not easy. So 5", "The total is 1,005", "2 + 3 = 5"]
)
def test_no_hedge(text):
    assert not hedged(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        *("\\boxed{" * 10**5, "<answer>" * 10**5, "Answer:" * 10**5, "Answer: " + "answer: " * 50_000),
        *("####" + " " * 10**6, "\\boxed" + " " * 10**6, "answer" + "*" * 10**6, "\\boxed{1}" * 30_000),
        *("the so " * 30 + "answer: " * 10**5, (". " * 60 + "answer:5\n") * 10_000),
    ],
    ids=range(10),
)
def test_hostile_marks_take_no_time(text):
    started = time.process_time()
    extract(text, "auto")
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{5}<think>", "5"),
        ("\\boxed{5}<think>\\boxed{6}", "5"),
        ("````markdown\n\\frac{x}{2}\n````", "\\frac{x}{2}"),
        ("```\nAnswer: 7\n```", "7"),
        ("```python\n7\n```", "```python\n7\n```"),
        ("```\n7\n```\n```\n8\n```", "```\n7\n```\n```\n8\n```"),
    ],
)
def test_what_stands_before_an_open_thinking_or_in_a_fence_of_markdown_counts(text, answer):
    assert extract(text, "auto").answer == answer


STEPS = "#### Step 1: Count\n4 boxes of 5.\n#### Step 2: Multiply\n4 * 5 = 20\n\nSo there are 20 apples."


@pytest.mark.parametrize("text", [STEPS, "#### Final Answer\nThe answer is 20.", "#### 20\n\n#### Explanation\nfoo"])
def test_a_heading_before_other_text_is_no_answer(text):
    assert grade(text, "20") and not grade(text, "2")


def test_a_heading_is_not_where_hashes_mark_the_answer():
    assert extract(STEPS, "hashes").answer == ""
    assert extract("#### 20\n#### Explanation\nfoo", "hashes").answer == "20"
