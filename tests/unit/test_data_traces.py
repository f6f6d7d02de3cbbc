"""Traces: think tags, every reason against one, and where the final answer begins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ext.data import traces
from s2l_ext.data.traces import answer_fault, answer_start, conclusion_of, fault, form_fault, is_answer_only, normalise
from s2l_ext.toy import tasks

REASONING = st.text(st.sampled_from("abc 012+=*\n.$(),é🙂"), max_size=60)
ANSWERS = st.sampled_from(["7", "-3", "\\frac{1}{2}", "x^{2}+1", "(1,2)", "\\text{A}"])


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("  2+2=4 \n", "2+2=4"),
        ("<think>a</think>b", "<think>a</think>b"),
        ("<Thinking>a</THINKING>b", "<think>a</think>b"),
        ("< thought >a</ thought >b", "<think>a</think>b"),
        ("a</think>b", "<think>\na</think>b"),
        ("<think>a</think>b<|im_end|>\n<|endoftext|>\n", "<think>a</think>b"),
        ("b<｜end▁of▁sentence｜>", "b"),
        (
            "<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>b<|end_of_solution|>",
            "<think>a</think>b",
        ),
        ("<|im_end|>", ""),
    ],
)
def test_normalise(given_text, expected):
    assert normalise(given_text) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "<thinking>", "</thought>", "<|im_end|>", "a", " ", "\n"])))
def test_normalise_twice_changes_nothing(parts):
    once = normalise("".join(parts))
    assert normalise(once) == once


@pytest.mark.parametrize(
    ("trace", "reason"),
    [
        ("", "missing"),
        (" \n", "missing"),
        ("<think>1+1=2</think>\\boxed{2}", None),
        ("1+1=2\n#### 2", None),
        ("1+1=2 <answer>2</answer>", None),
        ("<think>1+1=2", "unfinished thinking"),
        ("<think>a</think>b</think>\\boxed{2}", "broken think tags"),
        ("<think>a<think>b</think>\\boxed{2}", "broken think tags"),
        ("a</think>b<think>\\boxed{2}", "broken think tags"),
        ("<think>1+1=2 \\boxed{2}</think>", "no final answer"),
        ("<think>1+1=2 \\boxed{2}</think> It is 2.", "no final answer"),
        ("1+1=2 so \\boxed{2", "no final answer"),
        ("1+1=2, it is 2", "no final answer"),
        ("<think>a<|im_end|></think>\\boxed{2}", "chat token inside"),
        ("<think></think>\\boxed{2}", "answer only"),
        ("<think>\n\n</think>\n**The final answer is:** $\\boxed{2}$", "answer only"),
        ("\\boxed{2} because 1+1=2, so \\boxed{2}", "answer only"),
        ("#### 2", "answer only"),
        ("<answer>2</answer>", "answer only"),
        ("<think>1+1=2</think>\\boxed{3}", "wrong answer"),
        ("<think>1+1=2</think>\\boxed{x^}", "unparsable answer"),
        ("<think>1+1=2</think>\\boxed{}", "unparsable answer"),
        ("<think>1+1=2</think>\\boxed{\\frac{4}{2}}", None),
    ],
)
def test_every_reason(trace, reason):
    assert fault(trace, "2") == reason


def test_an_unmarked_answer_is_enough_when_asked():
    assert fault("1+1 = 2", "2", marked=False) is None
    assert fault("1+1 = 3", "2", marked=False) == "wrong answer"
    assert fault("<think>1+1</think>", "2", marked=False) == "no final answer"
    assert form_fault("The answer is 2", "2", marked=False) == "answer only"
    assert form_fault("2", "2", marked=False) == "answer only"
    assert not is_answer_only("two and two make 4", "4")


def test_a_slow_judgement_is_given_up(monkeypatch):
    now = iter([0.0, 31.0])
    monkeypatch.setattr(traces.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(traces, "grade", lambda prediction, gold: False)
    assert answer_fault("9^{9^9} \\boxed{9}", "2") == "not judged in time"


def test_an_answer_is_judged_in_the_conclusion():
    assert answer_fault("<think>\\boxed{3}</think>so #### 2\n#### 2", "2") is None
    assert answer_fault("<think>\\boxed{2}", "2") == traces.WRONG
    assert traces._incomplete("<think>a</think>b", False) is None and traces._incomplete("<think>a</think>b", True)


@pytest.mark.parametrize("tier", tasks.TIERS)
def test_toy_traces_pass_and_hasty_ones_do_not(tier):
    for problem in tasks.sample(tier, "train", 20, seed=0):
        assert form_fault(problem.trace) is None
        assert form_fault(tasks.response("", problem.answer)) == "answer only"
        assert problem.trace[answer_start(problem.trace) :] == f"\\boxed{{{problem.answer}}}"


@pytest.mark.parametrize(
    ("reasoning", "rest"),
    [
        ("a=1, so ", "\\boxed{7}."),
        ("first \\boxed{3}, then ", "\\boxed{7}"),
        ("<think>a</think>It is ", "\\boxed{1} and \\boxed{2}"),
        ("<think>then ", "\\boxed{7}</think>It is \\boxed{7}"),
        ("<think>then \\boxed{3} or ", "\\boxed{ 7 }</think>It is \\boxed{7}"),
        ("a\n", "#### 7\n"),
        ("a\n#### 6\nb\n", "#### 7"),
        ("a ", "<answer>so \\boxed{7}</answer>"),
        ("<think>a</think>", "\nIt is 7."),
        ("braces \\{ and ", "\\boxed{\\left\\{1,2\\right\\}}"),
        ("", "\\boxed{7}"),
    ],
)
def test_answer_start(reasoning, rest):
    assert answer_start(reasoning + rest) == len(reasoning)


@pytest.mark.parametrize("trace", ["", "1+1=2", "<think>a", "<think>a</think> \n", "a \\boxed{2"])
def test_no_answer_to_see(trace):
    assert answer_start(trace) is None


@pytest.mark.parametrize(
    ("reasoning", "rest", "answer"),
    [
        ("48/2=24 and 48+24 = ", "72 clips, so she sold 72", "72"),
        ("she earns $720 + $270 = $", "990.00", "990"),
        ("a profit of 450-2=$", "448,000", "448000"),
        ("she needs 20 + 5 = ", "25ml of oil", "25"),
        ("2nx and then ", "n.", "n"),
        ("172 and 7.2 and 72.5 and 0.72 and then ", "72.", "72"),
    ],
)
def test_an_unmarked_answer_is_found_by_its_value(reasoning, rest, answer):
    assert answer_start(reasoning + rest, answer) == len(reasoning)
    assert answer_start(reasoning + rest) is None


EARLIER = [
    (
        "<think>\nSo it is ",
        "\\boxed{\\dfrac{5}{9}} then.\n</think>\n\nThe answer is \\boxed{\\frac{5}{9}}.",
        "\\frac{5}{9}",
    ),
    ("Solution 1. We find ", "\\boxed{046}.\n\nSolution 2. Adding gives \\boxed{\\textbf{(46)}}.", "46"),
    ("We get ", "\\boxed{x=12}, so \\boxed{ 12. }", "12"),
    ("We get ", "\\boxed{\\frac59} or \\boxed{0.4}, and \\boxed{5/9}", "\\frac{5}{9}"),
    ("It costs ", "\\boxed{\\$1,450.50}. Yes \\boxed{1450.5\\text{ dollars}}", "1450.50"),
    ("First we add: 150 + 36 = ", "186.\nHence the total is\n\\[ \\boxed{186} \\]", "186"),
    ("First 186 + 5, then 150 + 36 = ", "186 and twice that is 372, halved, \\boxed{186}", "186"),
    ("<think>\nTwice 49 is ", "98, so the answer is 98. Let me check: yes.\n</think>\n\nIt is \\boxed{98}.", "98"),
    ("<think>So the answer is ", "7. Check: 3 + 5 = 8, and 8 - 1 = 7. Then 1 + 1 = 2.</think>\\boxed{7}", "7"),
    ("<think>**Final Answer:** $x = ", "4$ hm 5</think>\\boxed{x = 4}", "x = 4"),
    ("Take x = 2, then 3x = 6 and 6 - 4 = ", "2. So \\boxed{2}", "2"),
    ("It is 1 + 3 = 4 and 5 - 1 = 4, that is no answer. Then we get 40 + 9 = ", "49 and 3 = 3, \\boxed{49}", "49"),
    ("Let n = 49 first. Then 1 + 1 = 2, and so on for ever, until at last 2 + 2 = 4: ", "\\boxed{49}", "49"),
    ("The result is ", "98. Hm, 1 = 1, and that is all that there is to say about it. \\boxed{98}", "98"),
    ("We have \\frac{1}{3} + \\frac{2}{9} = ", "\\dfrac{5}{9}, and so on, 1 = 1. \\boxed{\\frac59}", "\\frac59"),
    ("Let n = 186 + 5 - 5, then 150 + 36 = ", "186, and so on, 1 = 1. \\boxed{186}", "186"),
    ("It falls: 3 - 15 = ", "-12. So \\boxed{-12}", "-12"),
    ("Since 12 = 12 is clear, 3 - 15 = -8 or so: ", "\\boxed{-12}", "-12"),
    ("(x+1)^2 = ", "x^2 + 2x + 1 and 1 = 1, \\boxed{x^2+2x+1}", "x^2+2x+1"),
]


@pytest.mark.parametrize(("before", "rest", "answer"), EARLIER)
def test_the_first_place_that_gives_the_answer_away(before, rest, answer):
    assert answer_start(before + rest, answer) == len(before)


@pytest.mark.parametrize(
    ("before", "rest", "answer"),
    [
        ("The price rises by $20 000, so it sells for $80 000 + $20 000 = $", "100 000.", "100000"),
        ("So it costs ", "1,450.50 in the end.", "1450.5"),
        ("So it costs 3 x 483,5 = ", "1.450,5 in the end", "1.450,5"),
        ("It weighs 3 - 0,5 = ", "2,5 kg.", "2.5"),
        ("That makes 1\\,234 + 1 = ", "1{,}235 people", "1235"),
        ("It comes to ", "0730 in total", "730"),
    ],
)
def test_an_unmarked_answer_is_found_in_another_spelling(before, rest, answer):
    assert answer_start(before + rest, answer) == len(before)


SOLVE = "def solve(n):\n    return n + n\n"


@pytest.mark.parametrize(
    ("before", "rest"),
    [
        ("We add.\n", f"```python\n{SOLVE}```\nThis adds."),
        (
            "<think>\nTry\n```python\nx = 1\n```\nno.\n",
            f"```python\n{SOLVE}```\nso\n</think>\n\nHere:\n```python\n{SOLVE}```",
        ),
        ("<think>\nTry\n```python\nx = 1\n```\n</think>", f"\n\nHere:\n```python\n{SOLVE}```"),
    ],
)
def test_a_program_is_not_handed_over(before, rest):
    tests = '{"test": "' + "assert solve(2) == 4 " * 20 + '"}'
    assert answer_start(before + rest) == answer_start(before + rest, tests) == len(before)


def test_an_answer_that_is_not_there():
    assert answer_start("so it is seven", "7") is None
    assert answer_start("so it is seven", "") is None


@pytest.mark.slow
@given(REASONING, ANSWERS, st.sampled_from(["\\boxed{%s}", "\n#### %s", "<answer>%s</answer>"]), st.booleans())
def test_the_answer_never_begins_inside_the_reasoning(reasoning, answer, mark, think):
    head = f"<think>{reasoning}</think>\n" if think else reasoning
    trace = head + mark % answer
    start = answer_start(trace)
    assert start is not None and start == len(head) + mark.startswith("\n")
    assert trace[:start] + trace[start:] == trace
    assert answer_start(trace[:start]) is None


@given(
    st.lists(st.sampled_from(["\\boxed{", "}", "7", "8", "####", " ", "\n", "<answer>", "</answer>", "</think>", "\\"]))
)
def test_any_text_has_an_offset_inside_it_or_none(parts):
    trace = "".join(parts)
    for answer in (None, "7"):
        start = answer_start(trace, answer)
        assert start is None or 0 <= start < len(trace)
    stated = traces.marked_answer(trace)
    if stated and "</answer>" not in stated:  # a mark inside another: the reward reads on to the last closing tag
        begin = answer_start(trace)
        assert begin is not None and traces.marked_answer(trace[:begin]) != stated


def test_conclusion():
    assert conclusion_of("a") == "a"
    assert conclusion_of("<think>a") == ""
    assert conclusion_of("<think>a</think>b") == "b"


@pytest.mark.parametrize(
    ("prompt_end", "said"),
    [
        ("<|im_start|>assistant\n", "<think>\nOkay.\n</think>\n\n7"),
        ("<|im_start|>assistant\n<think>\n", "Okay.\n</think>\n\n7"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "Okay.\n\n7"),
    ],
)
def test_a_trace_goes_on_where_the_template_stopped(prompt_end: str, said: str) -> None:
    """The same for guidance and for a store of traces: one blank line is between reasoning and answer."""
    assert traces.after_prompt("<think>\nOkay.\n</think>\n\n7", prompt_end) == said
