"""Rewards that only benchmarks need: letters of options, and programs as LiveCodeBench judges them."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.rewards import choice, code, livecodebench, quantity


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B", "B"),
        ("so.\nAnswer: $C$", "C"),
        ("**Answer:** D", "D"),
        ("**Answer: D**", "D"),
        ("Answer: (A)", "A"),
        ("Answer: B) 10^-4 eV", "B"),
        ("answer : C.", "C"),
        ("Answer: \\boxed{B}", "B"),
        ("it is \\boxed{\\text{C}}", "C"),
        ("\\boxed{\\textbf{(D)}}", "D"),
        ("Answer: A\nno, wait.\nAnswer: B", "B"),
        ("Answer: B\nAnswer: I think so", "B"),
        ("Answer: Because", None),
        ("Answer: E", None),
        ("Answer: b", None),
        ("the answer is B", None),
        ("\\boxed{42}", None),
        ("", None),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert choice.chosen_letter(text) == letter


def test_score_of_a_letter() -> None:
    assert choice.compute_score("gpqa", "Answer: B", "B") == {
        "score": 1.0,
        "acc": 1.0,
        "format_ok": 1.0,
        "extracted": "B",
    }
    assert choice.compute_score("gpqa", "Answer: A", "B")["acc"] == 0.0
    assert choice.compute_score("gpqa", "B", "B") == {"score": 0.0, "acc": 0.0, "format_ok": 0.0, "extracted": ""}
    assert choice.compute_score("x", "Answer: J", "J", {"options": 10})["acc"] == 1.0
    assert choice.compute_score("x", "Answer: D", "BD")["acc"] == 1.0
    assert choice.compute_score("aqua", "Answer: E", "E")["acc"] == 1.0
    assert choice.compute_score("aqua", "Answer: D", "E")["acc"] == 0.0
    assert choice.compute_score("aqua", "Answer: E\nAnswer: I think so", "E")["acc"] == 1.0
    assert choice.compute_score("aqua", "Answer: F", "E")["extracted"] == ""


@given(st.text(), st.sampled_from(string.ascii_uppercase))
def test_any_text_has_at_most_one_right_letter(text: str, truth: str) -> None:
    score = choice.compute_score("x", text, truth, {"options": 26})
    assert score["acc"] == float(score["extracted"] == truth)


@pytest.mark.parametrize("truth", ["", "b", "10 eV", None, 3])
def test_a_truth_that_is_no_letter_is_refused(truth: object) -> None:
    with pytest.raises(DataError, match="gpqa: the ground truth .* is no letter"):
        choice.compute_score("gpqa", "Answer: B", truth)  # type: ignore[arg-type]


# ---- quantities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7.5e7", 7.5e7),
        ("$7.5\\times10^{7}$", 7.5e7),
        ("3 \\cdot 10^{-5} \\text{ m}", 3e-5),
        ("3\\times10^{8}\\,\\mathrm{m}/\\mathrm{s}", 3e8),
        ("9.8 \\text{ m s}^{-2}", 9.8),
        ("-10^{-20}", -1e-20),
        ("1,200", 1200.0),
        ("1{,}000.5", 1000.5),
        ("+.5", 0.5),
        ("100", 100.0),
        ("10", 10.0),
        ("2\\pi", None),
        ("210^3", None),
        ("1,2", None),
        ("5%", None),
        ("\\frac{1}{2}", None),
        ("10^x", None),
        ("", None),
    ],
)
def test_numbers(text: str, value: float | None) -> None:
    assert quantity.number(text) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_as_it_is_written(value: float) -> None:
    assert quantity.number(repr(value)) == value


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("3\\times10^{-20}", "1e-20", False),
        ("1\\times10^{-20}", "1e-20", True),
        ("75000000", "7.5e7", True),
        ("7.5005e7", "7.5e7", True),
        ("7.51e7", "7.5e7", False),
        ("0", "1e-20", False),
        ("\\frac{1}{2}", "0.5", True),
        ("x^2+1", "1+x^2", True),
        ("x^2-1", "1+x^2", False),
    ],
)
def test_quantities(answer: str, truth: str, right: bool) -> None:
    found = quantity.compute_score("minerva", f"so \\boxed{{{answer}}}", truth)
    assert (found["acc"], found["format_ok"], found["extracted"]) == (float(right), 1.0, answer)


def test_an_answer_without_a_mark_is_left_to_mathematics() -> None:
    assert quantity.compute_score("minerva", "it is 42", "42")["format_ok"] == 0.0


def test_a_quantity_takes_the_keywords_of_mathematics() -> None:
    shaped = quantity.compute_score("minerva", "so \\boxed{7.5e7}", "75000000", accuracy_weight=2.0, format_weight=0.5)
    assert (shaped["score"], shaped["acc"]) == (2.5, 1.0)
    assert quantity.compute_score("minerva", "\\boxed{1}\n#### 3", "3", extraction="hashes")["acc"] == 1.0
    assert quantity.compute_score("minerva", "\\boxed{3}\n#### 1", "3")["acc"] == 0.0


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        *((each, r"unknown keyword format_wieght=1 of the \w+ reward") for each in (choice, code, livecodebench)),
        (quantity, r"format_wieght: unknown key\. Did you mean 'reward_kwargs\.format_weight'"),
    ],
)
def test_a_keyword_that_would_be_ignored_is_refused(reward, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reward.compute_score("d", "\\boxed{1}", "1", format_wieght=1)


def test_what_verl_passes_of_its_own_accord_is_no_keyword() -> None:
    assert choice.compute_score("gpqa", "Answer: B", "B", reward_router_address="host:1")["acc"] == 1.0


@pytest.mark.parametrize(
    ("text", "thinking", "acc"),
    [
        ("<think>Answer: B", "auto", 0.0),
        ("<think>Answer: A</think>Answer: B", "auto", 1.0),
        ("<think>Answer: B</think>Answer: A", "auto", 0.0),
        ("Answer: B", "opened", 0.0),
        ("Answer: A</think>Answer: B", "opened", 1.0),
    ],
)
def test_a_letter_in_the_thinking_is_no_choice(text: str, thinking: str, acc: float) -> None:
    assert choice.compute_score("gpqa", text, "B", thinking=thinking)["acc"] == acc


@pytest.mark.parametrize("reward", [choice, code, livecodebench])
def test_an_unknown_way_of_thinking_is_refused(reward) -> None:
    truth = "B" if reward is choice else {"inputs": ["1"], "outputs": ["1"]}
    with pytest.raises(ConfigError, match="thinking='open' must be auto, or opened"):
        reward.compute_score("d", "x", truth, thinking="open")


# ---- programs -----------------------------------------------------------------------------------------------------


def judge(program: str, **tests: object) -> dict:
    return livecodebench.compute_score("livecodebench", f"```python\n{program}\n```", json.dumps(tests))


def test_a_draft_in_the_thinking_is_no_program() -> None:
    tests = {"inputs": ["3"], "outputs": ["3"]}
    right, wrong = "```python\nprint(input())\n```", "```python\nprint(0)\n```"
    texts = (f"<think>{right}", f"<think>{right}</think>{wrong}", f"<think>{wrong}</think>{right}", right)
    assert [livecodebench.compute_score("l", text, tests)["acc"] for text in texts] == [0.0, 0.0, 1.0, 1.0]
    assert livecodebench.compute_score("l", right, tests, thinking="opened")["acc"] == 0.0


def test_the_first_failure_ends_it_and_is_named() -> None:
    found = judge("print(int(input()) % 3)", inputs=["1", "3", "4"], outputs=["1", "3", "1"])
    assert (found["score"], found["tests_passed"], found["tests_total"]) == (0.0, 1, 3)
    assert found["reason"].startswith("test 2 of 3: ")
    assert judge("print(int(input()) % 3)", inputs=["1", "3"], outputs=["1", "0"])["acc"] == 1.0


@pytest.mark.slow
def test_each_test_has_its_own_time() -> None:
    program = "import time\ndef f(s):\n    time.sleep(s)\n    return s"
    tests = {"inputs": ["0.6"] * 6, "outputs": ["0.6"] * 6, "fn_name": "f"}
    text = f"```python\n{program}\n```"
    assert livecodebench.compute_score("l", text, tests, timeout_s=3.0)["acc"] == 1.0  # 3.6 s in all
    assert livecodebench.compute_score("l", text, tests, timeout_s=0.3)["tests_passed"] == 0


def test_names_that_contests_take_for_granted_are_there() -> None:
    body = "[pow(2, x, 5), math.floor(2.5), gcd(4, 6), len(Counter('aab'))]"
    program = f"def f(x: Optional[int]) -> List[int]:\n    return {body}"
    assert judge(program, inputs=["3"], outputs=["[3, 2, 2, 2]"], fn_name="f")["acc"] == 1.0


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("[", "the tests look like JSON but are not"),
        ({"inputs": ["1"]}, r"the tests have the keys \['inputs'\]"),
        ({"inputs": [], "outputs": []}, "the tests hold no pair"),
        ({"outputs": []}, r"the tests have the keys \['outputs'\]"),
        ({"inputs": ["1"], "outputs": ["1"], "fn_name": "a b"}, "fn_name 'a b'"),
        ({"inputs": ["x"], "outputs": ["1"], "fn_name": "f"}, "input of test 1 is not JSON"),
        ({"inputs": ["1"], "outputs": ["x"], "fn_name": "f"}, "output of test 1 is not JSON"),
        ({"inputs": [1], "outputs": ["x"]}, "test 1 must be text"),
    ],
)
def test_malformed_tests_are_refused_with_their_row(tests: object, reason: str) -> None:
    with pytest.raises(DataError, match=rf"livecodebench abc1: .*({reason})"):
        livecodebench.compute_score("livecodebench", "x", tests, {"id": "abc1"})
