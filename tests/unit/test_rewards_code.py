"""The code reward: HumanEval as a whole, forms of tests, extraction, malformed rows."""

# ruff: noqa: E501 - a program a line
from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.rewards.code import compute_score, extract_program, run_tests
from s2l_ext.rewards.code_tests import TOLERANCE, compare_output, parse_tests
from s2l_ext.sandbox.runner import Limits, SandboxUnavailable

pytestmark = pytest.mark.slow

FIXTURE = Path(__file__).parents[1] / "fixtures" / "humaneval.jsonl"
ROWS = [json.loads(line) for line in FIXTURE.read_text(encoding="utf-8").splitlines()]
ADD = "def add(a, b):\n    return a + b\n"
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 2) == 4\n"


def all_of(function, rows=ROWS):
    with ThreadPoolExecutor(2) as threads:
        return dict(zip([row["task_id"] for row in rows], threads.map(function, rows), strict=True))


def test_every_canonical_solution_passes():
    outcomes = all_of(lambda row: compute_score("humaneval", row["prompt"] + row["canonical_solution"], row))
    assert len(outcomes) == 164
    assert {name: each for name, each in outcomes.items() if each["acc"] != 1.0 or each["score"] != 1.0} == {}


@pytest.mark.slow
def test_every_canonical_solution_passes_without_its_prompt_apart():
    def run(row):
        program, tests = row["prompt"] + row["canonical_solution"], f"{row['test']}\ncheck({row['entry_point']})\n"
        return run_tests(program, tests, 20)

    assert {name: each for name, each in all_of(run).items() if not each.passed} == {}


def test_wrong_variants_fail():
    """The prompt's own stub returns None; constants and swapped arguments are wrong as well."""
    bodies = ("    pass\n", "    return None\n", "    return True\n", "    return []\n", "    raise ValueError\n")

    def run(row):
        return [run_tests(row["prompt"] + body, row["test"], 20, entry_point=row["entry_point"]) for body in bodies]

    outcomes = all_of(run, ROWS[::16])
    assert not any(each.passed for several in outcomes.values() for each in several)
    assert all(each.reason for several in outcomes.values() for each in several)


def test_fraction_and_all_pass():
    program, truth = "def add(a, b): return 3", {"test": CHECK, "entry_point": "add"}
    assert compute_score("x", program, truth)["score"] == 0.0
    half = compute_score("x", program, truth, mode="fraction")
    assert (half["score"], half["acc"], half["tests_passed"], half["tests_total"]) == (0.5, 0.0, 1, 2)
    assert "candidate(2, 2) == 4" in half["reason"]
    assert compute_score("x", ADD, truth, mode="fraction")["score"] == 1.0


def test_an_exception_counts_the_tests_that_never_ran():
    tests = "def check(candidate):\n    assert candidate(1, 2) == 3\n    candidate(None, 1)\n    assert 1 < candidate(1, 1)\n"
    outcome = run_tests(ADD, tests, 5, entry_point="add")
    assert (outcome.passed, outcome.num_passed, outcome.num_total) == (False, 1, 2)
    assert "TypeError" in outcome.reason


def test_counts_survive_the_time_limit():
    program = "def add(a, b):\n    while a == 2: pass\n    return a + b\n"
    outcome = run_tests(program, CHECK, 0.5, entry_point="add")
    assert (outcome.passed, outcome.num_passed, outcome.num_total) == (False, 1, 2)
    assert outcome.reason == "out of time" and outcome.seconds < 5


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        (ADD, "assert add(1, 2) == 3"),
        (ADD, CHECK),
        (ADD, "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n        self.assertEqual(add(1, 2), 3)"),
        (ADD, "if add(1, 2) != 3:\n    raise ValueError"),
        ("def f(x): x.append(1); x.sort()", "a = [3]\nassert f(a) is None\nassert a == [1, 3]"),
        ("def f(x): x.update(a=2); del x['b']", "d = {'b': 1}\nf(d)\nassert d == {'a': 2}"),
        ("def f(g, x): return [g(y) for y in x]", "assert f(lambda y: y + 1, (1, 2)) == [2, 3]"),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]\nassert sum(f(4)) == 6"),
        ("class Stack(list):\n    def top(self): return self[-1]", "s = Stack([1])\nassert s == [1]"),
        (
            "class Q:\n    def __init__(self): self.items = []\n    def put(self, x): self.items.append(x)\n"
            "    def get(self): return self.items.pop(0)\n    def __len__(self): return len(self.items)",
            "q = Q()\nq.put(1)\nq.put(2)\nassert len(q) == 2\nassert q.get() == 1\nassert q.items == [2]",
        ),
        ("def f(x):\n    raise ValueError('no')", "try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'no'"),
        (
            "class Mine(KeyError): pass\ndef f():\n    raise Mine('x')",
            "try:\n    f()\n    raise RuntimeError\nexcept Mine:\n    ok = True\nassert ok",
        ),
        ("from math import nan, inf\ndef f(): return [nan, inf, -0.0, 1e300, 2**100, 1j]", "v = f()\nassert v[0] != v[0] and v[1:] == [float('inf'), 0, 1e300, 2**100, 1j]"),
        ("def f(): return (1, [2, {3: {4}}], b'x', frozenset([5]), range(3))", "assert f() == (1, [2, {3: {4}}], b'x', frozenset([5]), range(3))"),
        ("from fractions import Fraction as F\nfrom decimal import Decimal as D\ndef f(): return F(1, 3), D('0.1')", "from fractions import Fraction\nfrom decimal import Decimal\nassert f() == (Fraction(1, 3), Decimal('0.1'))"),
        ("from collections import Counter, deque\ndef f(): return Counter('aab'), deque([1])", "from collections import deque\nassert f() == ({'a': 2, 'b': 1}, deque([1]))"),
        ("LIMIT = 7\ndef f(): return LIMIT", "assert f() == LIMIT == 7"),
        ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(2.0), math.sqrt(2.0))"),
        ("def f(s): return s[::-1]", "assert f('aé\\udc80') == '\\udc80éa'"),
        ("import threading\ndef f():\n    out = []\n    t = threading.Thread(target=out.append, args=(1,))\n    t.start(); t.join()\n    return out", "assert f() == [1]"),
        ("def f():\n    with open('notes', 'w+') as n:\n        n.write('x'); n.seek(0)\n        return n.read()", "assert f() == 'x'"),
        ("import asyncio\nasync def g(): return 3\ndef f(): return asyncio.run(g())", "assert f() == 3"),
        ("def check(x): return x > 1", "assert check(2)\nassert not check(0)"),
        (ADD, "def test_add():\n    assert add(1, 2) == 3\n\ndef test_more():\n    assert add(2, 2) == 4"),
        (ADD, "def test_add():\n    if add(1, 2) != 3:\n        raise ValueError"),
        (ADD, "def case(a, b, c):\n    assert add(a, b) == c\nfor name in list(globals()):\n    if name == 'case':\n        globals()[name](1, 2, 3)"),
        (ADD, "try:\n    import nothing_of_that_name\nexcept ImportError:\n    pass\nassert add(1, 2) == 3"),
    ],
)  # fmt: skip
def test_right_programs_pass(program, tests):
    outcome = run_tests(program, tests, 10)
    assert outcome.passed and outcome.num_passed == outcome.num_total > 0, outcome


@pytest.mark.parametrize(
    "tests",
    [
        "def test_add():\n    assert add(1, 2) == 3\n\ndef test_more():\n    assert add(2, 2) == 5",
        "def test_add():\n    if add(1, 2) != 4:\n        raise ValueError",
        "def test_add():\n    add(None, 2)\n    assert 1 < 2",
        "def test_add():\n    for each in []:\n        assert add(1, 2) == 3",
    ],
)
def test_functions_that_pytest_would_call_can_fail(tests):
    assert not run_tests(ADD, tests, 10).passed


@pytest.mark.parametrize(
    ("program", "passes"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", True),
        ("import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())), end='  \\n\\n')", True),
        ("print(sum(map(int, open(0).read().split())))\nexit(0)", True),
        ("if __name__ == '__main__':\n    print(sum(map(int, input().split())))", True),
        ("import atexit\natexit.register(lambda: print(sum(map(int, input().split()))))", True),
        ("print(3)", False),
        ("a, b = input().split()\nprint(a + b)", False),
        ("print(sum(map(int, input().split())))\n1 / 0", False),
        ("print(sum(map(int, input().split())))\nraise SystemExit('bad')", False),
    ],
)
def test_input_and_output(program, passes):
    tests = [{"input": "1 2\n", "output": "3\n"}, {"input": "20 22", "output": "42"}]
    for form in (tests, {"inputs": ["1 2\n", "20 22"], "outputs": ["3\n", "42"]}):
        outcome = run_tests(program, json.dumps(form), 10)
        assert outcome.passed is passes, outcome
        assert outcome.num_total == 2


def test_reason_names_the_pair_but_not_what_was_expected():
    outcome = run_tests("print(3)", '[{"input": "", "output": "3"}, {"input": "", "output": "777"}]', 10)
    assert (outcome.num_passed, outcome.num_total) == (1, 2)
    assert outcome.reason.startswith("test 2 of 2") and "777" not in outcome.reason


def test_calls_with_json_arguments():
    truth = {"fn_name": "add", "inputs": ["1\n2", [20, 22]], "outputs": ["3", 42]}
    assert compute_score("lcb", ADD, truth)["acc"] == 1.0
    assert (
        compute_score("lcb", "class Solution:\n    def add(self, a, b): return a + b", json.dumps(truth))["acc"] == 1.0
    )
    assert compute_score("lcb", "def add(a, b): return a - b", truth)["acc"] == 0.0


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n3\n", "1  2 \n3", True),
        ("1\n\n", "1", True),
        ("1\n2", "1 2", False),
        ("0.3333333", "0.33333333333", True),
        ("0.3334", "0.33333333333", False),
        ("3.0", "3", False),
        ("3", "3.0", True),
        ("03", "3", False),
        ("nan", "nan", True),
        ("nan", "1.0", False),
        ("1e999", "1.0e308", False),
        ("YES", "Yes", False),
        ("", "", True),
        ("x", "", False),
    ],
)
def test_comparison_of_outputs(printed, expected, same):
    assert (compare_output(printed, expected) == "") is same


WORDS = st.lists(st.lists(st.text("abcXYZ0123456789.-", min_size=1, max_size=5), min_size=1, max_size=4), max_size=4)
SPACE = st.sampled_from([" ", "  ", "\t", " \t "])


@settings(max_examples=60, deadline=None)
@given(WORDS, SPACE, st.sampled_from(["\n", " \n", "\r\n"]), st.text("\n ", max_size=3))
def test_white_space_never_matters(lines, space, end, tail):
    expected = "\n".join(" ".join(words) for words in lines)
    printed = end.join(space.join(words) for words in lines) + (end + tail if lines else "")
    assert compare_output(printed, expected) == ""


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(-4, 4))
def test_tolerance_of_numbers(value, share):
    distance = share * TOLERANCE * max(1.0, abs(value))
    same = compare_output(repr(value + distance), repr(value)) == ""
    assert same or abs(share) > 0.99
    assert not same or abs(share) < 1.01


@settings(max_examples=60, deadline=None)
@given(st.integers(), st.integers())
def test_integers_must_be_equal(left, right):
    assert (compare_output(str(left), str(right)) == "") is (left == right)


@pytest.mark.parametrize(
    ("text", "program", "marked"),
    [
        ("so:\n```python\nx = 1\n```\nor\n```python\nx = 2\n```\ndone", "x = 2\n", True),
        ("```\nx = 1\n```\n```bash\npip install x\n```\n```text\n3\n```", "x = 1\n", True),
        ("```Python3\nx = 1\n```", "x = 1\n", True),
        ("  ```py\n  x = 1\n  import y\n  ```", "x = 1\nimport y\n", True),
        ("```python\n    return 1\n```", "    return 1\n", True),
        ("cut short\n```python\nx = 1\ny = 2", "x = 1\ny = 2", True),
        ("x = 1", "x = 1", False),
        ("", "", False),
        ("```python\n```", "", True),
        ("`x` and ```y``` inline", "`x` and ```y``` inline", False),
        ("```bash\nls\n```\n```python\nx = 1\n```\n```python\ny = 2", "x = 1\n", True),
    ],
)
def test_extraction(text, program, marked):
    assert extract_program(text) == (program, marked)


TWICE = "def twice(n):\n    return n + n\n"
HALF = "def half(n):\n    return n / 2\n"
SHOWN = {
    "usage after": (f"```python\n{TWICE}```\nTry it:\n```python\nprint(twice(5))  # 10\n```", TWICE),
    "output after": (f"```python\n{TWICE}```\nOutput:\n```\n10\n```", TWICE),
    "usage before": (f"```py\nprint(twice(5))\n```\n```\n{TWICE}```", TWICE),
    "signature before": (f"```\ndef twice(n):\n    ...\n```\n```python\n{TWICE}```", TWICE),
    "two solutions: the last": (
        f"```python\n{TWICE}```\n```python\n{TWICE.replace('n + n', '3 * n')}```",
        TWICE.replace("n + n", "3 * n"),
    ),
    "opened by the prompt": (f"{TWICE}```", TWICE),
    "opened by the prompt, usage after": (f"{TWICE}```\nThen:\n```python\ntwice(5)\n```", TWICE),
    "body": ("```python\n    return n + n\n```\nso\n```python\nprint(twice(5))\n```", "    return n + n\n"),
    "four backticks": (f"````python\n{TWICE}````", TWICE),
    "tildes": (f"~~~python\n{TWICE}~~~", TWICE),
    "text after the fence": (f"```python\n{TWICE}``` It adds.\n```python\ntwice(5)\n```", TWICE),
    "fence never closed": (f"```python\n{TWICE}```python\ntwice(5)\n```", TWICE),
    "cut short": (f"```python\ntwice(5)\n```\n```python\n{TWICE}", TWICE),
    "byte order mark": (f"\ufeff```python\n\ufeff{TWICE}```", TWICE),
    "lambda": ("```python\ntwice = lambda n: n + n\n```\n```python\nprint(twice(5))\n```", "twice = lambda n: n + n\n"),
    "helper apart": (
        f"```python\n{HALF}```\n```python\n{TWICE.replace('n + n', 'half(4 * n)')}```",
        HALF + TWICE.replace("n + n", "half(4 * n)"),
    ),
    "helper only spoken of": (f"```python\n{HALF}```\n```python\n# not half(n)\n{TWICE}```", f"# not half(n)\n{TWICE}"),
    "import apart": (
        "```python\nimport math, os\nprint(1)\n```\n```python\ndef twice(n):\n    return math.fsum((n, n))\n```",
        "import math, os\ndef twice(n):\n    return math.fsum((n, n))\n",
    ),
}


@pytest.mark.parametrize(("text", "program"), SHOWN.values(), ids=SHOWN)
def test_the_program_is_the_block_that_the_tests_call(text, program):
    truth = {"test": "def check(candidate):\n    assert candidate(3) == 6\n", "entry_point": "twice"}
    assert extract_program(text, parse_tests(truth)) == (program, True)


def test_the_body_of_a_function_keeps_its_indentation_though_it_defines_another():
    body = "    def add(a, b):\n        return a + b\n    return add(n, n)\n"
    prompt = 'def twice(n: int) -> int:\n    """Return 2 * n."""\n'
    truth = {"test": "def check(candidate):\n    assert candidate(3) == 6\n", "entry_point": "twice", "prompt": prompt}
    for text in (f"```python\n{body}```", f"```python\n{body}```\nso\n```python\nprint(twice(5))\n```"):
        assert extract_program(text, parse_tests(truth)) == (body, True)
        assert compute_score("humaneval", text, truth)["acc"] == 1.0
    whole = "- so\n  ```python\n  import math\n  def twice(n):\n      return n + n\n  ```"
    assert extract_program(whole, parse_tests(truth)) == ("import math\ndef twice(n):\n    return n + n\n", True)


def test_a_fence_inside_a_docstring_ends_nothing():
    code = (
        'def twice(n):\n    """Doubles.\n\n    ```python\n    twice(3)  # \'\'\'\n    ```\n    """\n    return n + n\n'
    )
    assert extract_program(f"```python\n{code}```\nOutput\n```\n6\n```", parse_tests("assert twice(3) == 6")) == (
        code,
        True,
    )
    unclosed = 'x = """\n'
    assert extract_program(f"```python\n{unclosed}```\nthen\n```python\ny = 1\n```") == ("y = 1\n", True)


def test_a_helper_comes_from_the_nearest_block_before():
    """half is written three times: the second stands nearest before the program that calls it."""
    program = "def twice(n):\n    return half(4 * n)\n"
    blocks = [HALF.replace("/ 2", "/ 3"), HALF, program, HALF.replace("/ 2", "/ 5")]
    text = "\nthen\n".join(f"```python\n{block}```" for block in blocks)
    truth = {"test": "def check(candidate):\n    assert candidate(3) == 6\n", "entry_point": "twice"}
    assert extract_program(text, parse_tests(truth)) == (HALF + program, True)


def test_both_functions_that_the_tests_call_are_kept():
    text = f"```python\n{TWICE}```\n```python\n{HALF}```\n```python\nassert half(twice(1)) == 2\n```"
    assert extract_program(text, parse_tests("assert half(twice(3)) == 3")) == (TWICE + HALF, True)


READER = "n = int(input())\nprint(n + n)\n"
STDIN = {
    "output after": (f"```\n{READER}```\nOutput:\n```\n10\n```", READER),
    "harness after": (f"```python\n{READER}```\n```python\nimport io, sys\nsys.stdin = io.StringIO('5')\n```", READER),
    "two programs: the last": (
        f"```python\n{READER}```\n```python\n{READER.replace('n + n', 'n')}```",
        READER.replace("n + n", "n"),
    ),
    "function apart": (
        f"```python\n{TWICE}```\n```python\nprint(twice(int(input())))\n```",
        TWICE + "print(twice(int(input())))\n",
    ),
    "no input": ("```python\nprint(3)\n```\n```python\nx = 1\n```", "print(3)\n"),
}


@pytest.mark.parametrize(("text", "program"), STDIN.values(), ids=STDIN)
def test_the_program_for_standard_input(text, program):
    assert extract_program(text, parse_tests([{"input": "5", "output": "10"}])) == (program, True)


def test_writing_two_solutions_is_no_hedge():
    """The right one first and a wrong one last is wrong: one block is chosen, whatever passes."""
    truth = {"test": "def check(candidate):\n    assert candidate(3) == 6\n", "entry_point": "twice"}
    text = f"```python\n{TWICE}```\n```python\n{TWICE.replace('n + n', 'n * n')}```"
    assert compute_score("humaneval", text, truth)["acc"] == 0.0


def test_a_usage_block_costs_nothing():
    prompt = 'def twice(n: int) -> int:\n    """Return 2 * n."""\n'
    truth = {"test": "def check(candidate):\n    assert candidate(3) == 6\n", "entry_point": "twice", "prompt": prompt}
    for text, _ in SHOWN.values():
        wrong = "3 * n" in text
        assert compute_score("humaneval", text, truth)["acc"] == float(not wrong), text


@pytest.mark.parametrize(
    "answer", ["```python\n" + ADD + "```", "```python\n    return a + b\n```", "    return a + b\n", ADD]
)
def test_answers_may_repeat_the_prompt_or_continue_it(answer):
    truth = {"prompt": "def add(a, b):\n    '''sum'''\n", "test": CHECK, "entry_point": "add"}
    assert compute_score("humaneval", answer, truth)["acc"] == 1.0


MALFORMED = {
    "empty": "",
    "blank": "  \n",
    "none": None,
    "number": 7,
    "no assertion": "x = 1",
    "nothing calls the assertion": "def run(a):\n    assert add(a, 1) == 2\n    raise ValueError",
    "pytest would call with fixtures": "def test_add(numbers):\n    assert add(*numbers) == 2",
    "a package that is not there": "import nothing_of_that_name\nassert add(1, 1) == 2",
    "the program as a module": "from solution import add\ndef test_add():\n    assert add(1, 1) == 2",
    "broken syntax": "assert (",
    "null character": "assert True\0",
    "broken json": '{"test": ',
    "list of texts": '["1", "2"]',
    "no pairs": "[]",
    "pair without output": '[{"input": "1"}]',
    "output is a number": '[{"input": "1", "output": 3}]',
    "lengths differ": {"inputs": ["1"], "outputs": []},
    "unknown keys": {"question": "?"},
    "check is missing": {"test": "assert True == candidate", "entry_point": "add"},
    "test is not text": {"test": ["assert 1"], "entry_point": "add"},
    "entry point is no name": {"test": CHECK, "entry_point": "add()"},
    "prompt does not run": {"test": CHECK, "entry_point": "add", "prompt": "import nothing_of_that_name\n"},
    "prompt is not text": {"test": CHECK, "entry_point": "add", "prompt": 3},
    "arguments are no json": {"fn_name": "add", "inputs": ["1 2"], "outputs": ["3"]},
    "an object that cannot cross": {"test": "def check(c):\n    assert c(object(), 1)", "entry_point": "add"},
    "functional pairs": [{"input": "1", "output": "1", "testtype": "functional"}],
    "nested beyond reason": "[" * 100000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_tests_are_refused_with_the_row(name):
    with pytest.raises(DataError, match=r"code tests of lcb \(id p/7, index 3\): .+"):
        compute_score("lcb", ADD, MALFORMED[name], {"id": "p/7", "index": 3})


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(
        DataError, match="`import numpy as np` fails in the sandbox: No module named 'numpy'. S2L_SANDBOX"
    ):
        compute_score("lcb", ADD, {"test": f"import numpy as np\n{CHECK}", "entry_point": "add"})


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError, match="mode='some'"):
        compute_score("x", ADD, CHECK, mode="some")
    with pytest.raises(ConfigError, match="timeout_s=0"):
        run_tests(ADD, CHECK, 0)
    with pytest.raises(ConfigError, match="sandbox level 'strong' is unknown"):
        run_tests(ADD, CHECK, 1, minimum_level="strong")


def test_no_sandbox_is_an_error_not_a_zero(monkeypatch):
    from s2l_ext.sandbox import levels as sandbox_levels
    from s2l_ext.sandbox import runner as sandbox

    monkeypatch.setattr(sandbox, "_default", None)
    monkeypatch.setattr(sandbox_levels, "interpreter", lambda: "/nonexistent/python")
    with pytest.raises(SandboxUnavailable, match="no sandbox can be started here"):
        compute_score("x", ADD, {"test": CHECK, "entry_point": "add"})


def test_limits_can_be_set():
    program = "def add(a, b):\n    x = bytearray(2**27)\n    return a + b\n"
    assert run_tests(program, CHECK, 10, entry_point="add").passed
    assert not run_tests(program, CHECK, 10, entry_point="add", limits=Limits(memory_bytes=2**27)).passed


def test_a_long_output_that_is_wanted_may_be_printed():
    for size, wanted in ((2**21, True), (2**20, False)):
        tests = json.dumps([{"input": "", "output": "x" * size}])
        assert run_tests(f"print('x' * {2**21})", tests, 20).passed is wanted
    reason = run_tests("print('x' * 2**23)", tests, 20).reason
    assert reason == f"test 1 of 1: more than {2**21 + 2**16} bytes of output"


def test_long_answers_take_no_time():
    """These run in the reward worker itself, where a quadratic pattern would stop training."""
    started = time.process_time()
    extract_program("```a\n" * 100_000)
    extract_program("```python x\n" * 100_000)
    extract_program("```python\n" + " \n" * 100_000 + "```")
    assert compare_output("1" * 1_000_000 + "x", "1.5") != ""
    assert time.process_time() - started < 5


def test_reasons_can_be_logged_as_utf8():
    outcome = run_tests("def f():\n    raise ValueError('\\ud800')", "assert f() == 1", 5)
    assert outcome.reason.encode() and "ValueError" in outcome.reason


def test_forms_of_tests():
    assert parse_tests({"test": CHECK, "entry_point": "add", "prompt": None}).prompt == ""
    assert parse_tests({"inputs": [["1", "2"]], "outputs": [["3"]]}).pairs == (("1\n2", "3"),)
    assert parse_tests(CHECK, "add").entry_point == "add"
