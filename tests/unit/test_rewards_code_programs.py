"""Right programs that a comparison or a prompt before them made wrong: tuples, wrapped results, ``__future__``."""

from __future__ import annotations

import json

import pytest

from s2l_ext.rewards import livecodebench
from s2l_ext.rewards.code import complete_program, compute_score
from s2l_ext.rewards.code_blocks import extract_program, join_sources
from s2l_ext.rewards.code_tests import parse_tests

FUTURE = "from __future__ import annotations\n"
PROMPT = 'from typing import List\n\ndef inc(x: int) -> int:\n    """Add one."""\n'
INC = "def inc(x: int) -> int:\n    return x + 1\n"
HUMAN_EVAL = {"test": "def check(candidate):\n    assert candidate(1) == 2\n", "entry_point": "inc", "prompt": PROMPT}


def block(code: str) -> str:
    return f"```python\n{code}```\n"


@pytest.mark.parametrize(
    ("result", "wanted", "right"),
    [
        ("(x, 2 * x)", [3, 6], True),
        ("(x, 2 * x)", [6, 3], False),
        ("[(x, (x,)), ()]", [[3, [3]], []], True),
        ("{'a': (x,), 1: 2}", {"a": [3], "1": 2}, True),
        ("2 * x", [6], True),
        ("(2 * x,)", [6], True),
        ("(x, 2 * x)", [[3, 6]], True),
        ("3 * x", [6], False),
        ("x", [3, 6], False),
        ("[6]", 6, False),
        ("str(2 * x)", 6, False),
        ("b'6'", 6, False),
        ("{3, 6}", [3, 6], False),
        ("__import__('fractions').Fraction(2 * x)", 6, True),
        ("None", [None], True),
    ],
)
def test_results_are_compared_as_json_has_them(result: str, wanted: object, right: bool) -> None:
    tests = {"fn_name": "f", "inputs": [[3]], "outputs": [wanted]}
    found = compute_score("taco", block(f"def f(x):\n    return {result}\n"), json.dumps(tests))
    assert found["acc"] == float(right), found
    assert right or found["reason"].startswith("failed: assert _result('[3]') ")


@pytest.mark.parametrize("name", ["result", "given", "called_with", "json_of"])
def test_a_function_of_any_name_is_called(name: str) -> None:
    tests = {"fn_name": name, "inputs": [[3]], "outputs": [6]}
    assert compute_score("taco", block(f"def {name}(x):\n    return 2 * x\n"), tests)["acc"] == 1.0


@pytest.mark.parametrize("head", [FUTURE, f'"""A solution."""\n# why\n{FUTURE}', FUTURE.replace("\n", "; import os\n")])
def test_a_program_from_the_future_passes_after_a_prompt(head: str) -> None:
    assert compute_score("humaneval", block(head + INC), HUMAN_EVAL)["acc"] == 1.0
    assert compute_score("humaneval", block(head + INC.replace("1", "2")), HUMAN_EVAL)["acc"] == 0.0
    assert compute_score("humaneval", block(head + PROMPT + "    return x + 1\n"), HUMAN_EVAL)["acc"] == 1.0
    for program, tests in (
        ("print(2 * int(input()))\n", {"inputs": ["3"], "outputs": ["6"]}),
        ("def f(x: Never) -> List[int]:\n    return 2 * x\n", {"inputs": ["3"], "outputs": ["6"], "fn_name": "f"}),
    ):
        assert livecodebench.compute_score("lcb", block(head + program), tests)["acc"] == 1.0


def test_future_lines_come_first_and_nothing_else_moves() -> None:
    assert join_sources("import os\n", f'"""é"""; {FUTURE}x = 1\n') == f'{FUTURE}import os\n"""é"""; pass\nx = 1\n'
    several = "from __future__ import (\n    annotations,\n    division,\n)\ny = 2\n"
    assert join_sources("x\n", several) == "from __future__ import annotations, division\nx\npass\ny = 2\n"
    mentioned = f'"""\n{FUTURE}"""\nx = 1\n'
    late = f"x = 1\n{FUTURE}"
    broken = f"{FUTURE}def f(:\n"
    for source in (mentioned, late, broken, "x = 1"):
        assert join_sources("import os\n", source) == f"import os\n{source}"
    prompt = f'"""Doc."""\n{FUTURE}{PROMPT}'
    joined = complete_program(FUTURE + INC, parse_tests(HUMAN_EVAL | {"prompt": prompt}))
    assert joined.startswith(FUTURE * 2 + '"""Doc."""\npass\n') and compile(joined, "program.py", "exec")


def test_future_lines_of_several_blocks() -> None:
    helper = FUTURE + "def half(n):\n    return n // 2\n"
    text = block(helper) + block(FUTURE + "def f(n):\n    return half(4 * n)\n")
    tests = {"fn_name": "f", "inputs": [[3]], "outputs": [6]}
    assert extract_program(text, parse_tests(tests))[0].count(FUTURE) == 2
    assert compute_score("taco", text, tests)["acc"] == 1.0


def test_the_number_of_a_test_is_said_once() -> None:
    tests = {"inputs": ["3", "4"], "outputs": ["6", "9"]}
    found = livecodebench.compute_score("lcb", block("print(2 * int(input()))\n"), tests)
    assert found["reason"] == "test 2 of 2: line 1: printed '8'"
