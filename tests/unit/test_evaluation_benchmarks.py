"""Every built-in benchmark: a row with the published columns becomes a prompt and a truth, and its reward judges."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from s2l_ext.data.humaneval import INSTRUCTION
from s2l_ext.errors import DataError
from s2l_ext.evaluation.benchmarks import BUILT_IN, Problem, load_benchmark
from s2l_ext.evaluation.forms import options
from s2l_ext.evaluation.grading import grade, load_reward, reward_name
from s2l_ext.evaluation.problems import read_problems
from s2l_ext.rewards.code_tests import parse_tests

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."


def only(tmp_path: Path, benchmark: str, row: dict[str, Any]) -> Problem:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (problem,) = read_problems([path], load_benchmark(benchmark))
    return problem


def right(problem: Problem, text: str) -> bool:
    return grade(load_reward(reward_name(problem)), problem, text).correct


MATH = [
    (
        "math500",
        {
            "problem": "P",
            "solution": "so $\\boxed{(3,\\frac{\\pi}{2})}$",
            "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
            "subject": "Precalculus",
            "level": 2,
            "unique_id": "test/precalculus/807.json",
        },
        "test/precalculus/807.json",
        "\\left( 3, \\frac{\\pi}{2} \\right)",
        "\\boxed{(3, \\pi/2)}",
        "\\boxed{(3, \\pi/3)}",
    ),
    (
        "aime24",
        {"id": 60, "problem": "P", "solution": "long \\boxed{7}", "answer": "073", "url": "u", "year": "2024"},
        "60",
        "073",
        "\\boxed{73}",
        "\\boxed{7}",
    ),
    (
        "aime24",
        {"ID": "2024-I-1", "Problem": "P", "Solution": "long", "Answer": 204},
        "2024-I-1",
        "204",
        "\\boxed{204}",
        "\\boxed{240}",
    ),
    ("aime24", {"id": 60, "problem": "P", "solution": "\\boxed{204}", "url": "u"}, "60", "204", "#### 204", "204.5"),
    ("aime25", {"problem": "P", "answer": "70", "id": "0"}, "0", "70", "\\boxed{70}", "\\boxed{7}"),
    ("amc23", {"id": 0, "question": "P", "answer": "27.0", "url": "u"}, "0", "27.0", "\\boxed{27}", "\\boxed{-27}"),
    (
        "minerva",
        {"question": "P", "answer": "7.5e7"},
        None,
        "7.5e7",
        "\\boxed{75000000}",
        "\\boxed{7.5e6}",
    ),
    (
        "olympiadbench",
        {
            "id": 1606,
            "question": "P",
            "solution": ["s"],
            "final_answer": ["$1,2$"],
            "context": None,
            "image_1": None,
            "modality": "Text-only",
            "is_multiple_answer": True,
            "unit": None,
            "answer_type": "Numerical",
        },
        "1606",
        "$1,2$",
        "\\boxed{2, 1}",
        "\\boxed{1}",
    ),
    (
        "olympiadbench",
        {"id": 2, "question": "P", "final_answer": ["2", "5"]},
        "2",
        "2, 5",
        "\\boxed{2,5}",
        "\\boxed{2}",
    ),
    ("olympiadbench", {"id": 2, "question": "P", "final_answer": "['2']"}, "2", "2", "\\boxed{2}", "\\boxed{3}"),
    (
        "olympiadbench",
        {"id": 2, "question": "P", "final_answer": "[0,1]"},
        "2",
        "[0,1]",
        "\\boxed{[0,1]}",
        "\\boxed{0}",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "row", "identity", "truth", "yes", "no"), MATH)
def test_mathematics(tmp_path: Path, name: str, row: dict, identity: str | None, truth: str, yes: str, no: str) -> None:
    problem = only(tmp_path, name, row)
    assert problem.messages == [{"role": "user", "content": f"P{BOXED}"}]
    assert (problem.data_source, problem.ground_truth) == (name, truth)
    assert identity is None or problem.id == identity
    assert right(problem, f"It follows that {yes}") and not right(problem, f"It follows that {no}")


def test_pictures_are_refused(tmp_path: Path) -> None:
    row = {"id": 1, "question": "P", "final_answer": ["2"], "image_1": {"bytes": "...", "path": None}}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: column 'image_1' is not empty"):
        only(tmp_path, "olympiadbench", row)


@pytest.mark.parametrize("name", sorted(path.stem for path in BUILT_IN.glob("*.yaml")))
def test_wrong_columns_are_refused_with_those_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: column '[\w ]+' is missing\. Found: something"):
        only(tmp_path, name, {"something": 1})


@pytest.mark.parametrize("path", sorted(BUILT_IN.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_names_its_source_and_its_rule(path: Path) -> None:
    benchmark = load_benchmark(path.stem)
    assert benchmark.data_source == path.stem
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(" 20" in line for line in comments) and any(line.startswith("# Prompt") for line in comments)
    assert callable(load_reward(str(benchmark.reward)))
    assert benchmark.hub or path.stem == "livecodebench"


# ---- multiple choice ----------------------------------------------------------------------------------------------

GPQA = {
    "Record ID": "rec06pnAkLOr2t2mp",
    "Question": "Which energy?",
    "Correct Answer": "10^-4 eV\n",
    "Incorrect Answer 1": "10^-11 eV",
    "Incorrect Answer 2": "10^-8 eV",
    "Incorrect Answer 3": "10^-9 eV",
    "Explanation": "E",
}


TEXTS = ["bank", "library", "shop", "mall", "new york"]
QUESTION = (
    "A revolving door is convenient for two direction travel, but it also serves as a security measure at a what?"
)
PUBLISHED = [
    {
        "id": "1afa02df",
        "question": QUESTION,
        "question_concept": "revolving door",
        "choices": {"label": list("ABCDE"), "text": TEXTS},
        "answerKey": "A",
    },
    {
        "answerKey": "A",
        "id": "1afa02df",
        "question": {
            "question_concept": "revolving door",
            "choices": [{"label": label, "text": text} for label, text in zip("ABCDE", TEXTS, strict=True)],
            "stem": QUESTION,
        },
    },
]


@pytest.mark.parametrize("row", PUBLISHED, ids=["hub", "authors"])
def test_commonsense_qa(tmp_path: Path, row: dict[str, Any]) -> None:
    problem = only(tmp_path, "commonsense_qa", row)
    assert (problem.id, problem.ground_truth, problem.extra_info["options"]) == ("1afa02df", "A", 5)
    shown = "A) bank\nB) library\nC) shop\nD) mall\nE) new york"
    assert problem.messages[0]["content"].endswith(f"step by step before answering.\n\n{QUESTION}\n\n{shown}")
    assert right(problem, "It is a bank.\nAnswer: A") and not right(problem, "Answer: E")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answerKey": ""}, "column 'answerKey' is blank. Fill it, or remove the row."),
        (
            {"answerKey": "F"},
            "column 'answerKey' is 'F' and column 'choices' has the options A, B, C, D, E. Options are A, B, ... in "
            "order, none blank, and the answer is one of them.",
        ),
        ({"choices": "A) bank"}, "column 'choices' is 'A) bank', not labels and texts of options."),
        (
            {"choices": {"label": ["A", "C"], "text": ["x", "y"]}},
            "column 'answerKey' is 'A' and column 'choices' has the",
        ),
    ],
)
def test_commonsense_qa_refuses_other_rows(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as refusal:
        only(tmp_path, "commonsense_qa", PUBLISHED[0] | changes)
    assert str(refusal.value).startswith(f"{tmp_path}/rows.jsonl:1: {message}")


def test_gpqa(tmp_path: Path) -> None:
    problem = only(tmp_path, "gpqa", GPQA)
    text = problem.messages[0]["content"]
    lines = text.splitlines()
    shown = {line[0]: line[3:] for line in lines[-4:]}
    assert sorted(shown) == list("ABCD") and shown[problem.ground_truth] == "10^-4 eV"
    assert sorted(shown.values()) == sorted(str(GPQA[name]).strip() for name in GPQA if "Answer" in name)
    assert lines[0].endswith(
        "'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step before answering."
    )
    assert problem.id == "rec06pnAkLOr2t2mp"
    wrong = next(letter for letter in "ABCD" if letter != problem.ground_truth)
    assert right(problem, f"Answer: {problem.ground_truth}") and not right(problem, f"Answer: {wrong}")
    assert only(tmp_path, "gpqa", GPQA) == problem


def test_the_right_option_stands_anywhere() -> None:
    names = ["w1", "w2", "w3"]
    rows = [{"r": f"right {i}", "w1": f"x{i}", "w2": f"y{i}", "w3": f"z{i}"} for i in range(400)]
    truths = [options(row, "r", names, "here").truth for row in rows]
    assert all(70 <= truths.count(letter) <= 130 for letter in "ABCD")


def test_an_option_that_equals_the_right_one_is_right() -> None:
    formed = options({"r": "2", "w1": "3", "w2": " 2 "}, "r", ["w1", "w2"], "here")
    assert len(formed.truth) == 2 and {formed.columns[letter] for letter in formed.truth} == {"2"}
    assert formed.extra == {"options": 3}


# ---- programs -----------------------------------------------------------------------------------------------------

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x: int) -> int:\n    """Twice x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n",
    "entry_point": "double",
}


def test_humaneval(tmp_path: Path) -> None:
    problem = only(tmp_path, "humaneval", HUMANEVAL)
    assert problem.messages[0]["content"] == f"{INSTRUCTION}\n\n```python\n{HUMANEVAL['prompt'].rstrip()}\n```"
    assert problem.id == "HumanEval/0"
    tests = parse_tests(problem.ground_truth)
    assert (tests.entry_point, tests.source, tests.prompt) == ("double", HUMANEVAL["test"], HUMANEVAL["prompt"])
    assert right(problem, "```python\ndef double(x):\n    return x + x\n```")
    assert not right(problem, "```python\ndef double(x):\n    return x * x\n```")
    other = {"id": "HumanEval/0", "problem": HUMANEVAL["prompt"], "solution": "", "answer": ""}
    again = only(tmp_path, "humaneval", other | {"test": HUMANEVAL["test"], "entry_point": "double"})
    assert (again.messages, again.ground_truth) == (problem.messages, problem.ground_truth)


def test_humaneval_rows_that_cannot_be_graded_are_refused(tmp_path: Path) -> None:
    for changes, reason in (
        ({"entry_point": "triple"}, "'triple', which column 'problem' does not define"),
        ({"entry_point": "no name"}, "entry_point 'no name' is not the name of a function"),
        ({"test": " "}, "column 'test' is blank"),
    ):
        with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{reason}"):
            only(tmp_path, "humaneval", HUMANEVAL | changes)


def packed(tests: list[dict[str, str]]) -> str:
    """As published: base64 of zlib of a pickled JSON text."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


STDIN = {
    "question_title": "Sum",
    "question_content": "Add two numbers.",
    "platform": "atcoder",
    "question_id": "abc301_a",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "private_test_cases": packed([{"input": "5 5\n", "output": "10\n", "testtype": "stdin"}]),
    "metadata": "{}",
}
FUNCTIONAL = STDIN | {
    "question_id": "2784",
    "starter_code": "class Solution:\n    def addAll(self, nums: List[int], k: int) -> List[int]:\n        ",
    "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]),
    "private_test_cases": json.dumps([{"input": "[]\n3", "output": "[]", "testtype": "functional"}]),
    "metadata": json.dumps({"func_name": "addAll"}),
}


def test_livecodebench_with_standard_input(tmp_path: Path) -> None:
    problem = only(tmp_path, "livecodebench", STDIN)
    system, user = problem.messages
    assert system["role"] == "system" and "expert Python programmer" in system["content"]
    assert user["content"].startswith("### Question:\nAdd two numbers.\n\n### Format: Read the inputs from stdin")
    assert "```python\n# YOUR CODE HERE\n```" in user["content"]
    assert json.loads(problem.ground_truth) == {"inputs": ["1 2\n", "5 5\n"], "outputs": ["3\n", "10\n"]}
    assert problem.id == "abc301_a"
    assert right(problem, "```python\nprint(sum(map(int, sys.stdin.read().split())))\n```")
    assert not right(problem, "```python\nprint(3)\n```")


def test_livecodebench_with_a_function(tmp_path: Path) -> None:
    problem = only(tmp_path, "livecodebench", FUNCTIONAL)
    assert f"```python\n{FUNCTIONAL['starter_code']}\n```" in problem.messages[1]["content"]
    assert json.loads(problem.ground_truth)["fn_name"] == "addAll"
    answer = "```python\nclass Solution:\n    def addAll(self, nums: List[int], k: int):\n        return {}\n```"
    assert right(problem, answer.format("tuple(n + k for n in nums)"))
    assert not right(problem, answer.format("nums"))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"private_test_cases": "%%%"}, "column 'private_test_cases' holds no readable tests"),
        ({"private_test_cases": "[1"}, "holds no readable tests"),
        (
            {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()},
            r"no readable tests \(a pickle with STACK_GLOBAL",
        ),
        ({"metadata": json.dumps({"func_name": "f"})}, "not an input and output of testtype functional"),
        ({"metadata": "[1"}, "column 'metadata' is no JSON object"),
        ({"private_test_cases": [{"input": "1"}]}, "test 2 is {'input': '1'}"),
        ({"private_test_cases": [{"input": "1", "output": 3}]}, "input and output of test 2 must be text"),
    ],
)
def test_livecodebench_rows_that_cannot_be_graded_are_refused(
    tmp_path: Path, changes: dict, reason: str, capsys
) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{reason}"):
        only(tmp_path, "livecodebench", STDIN | changes)
    assert "executed" not in capsys.readouterr().out
