"""Programs that attack the verdict: none of them computes the sum, each must score 0."""

# ruff: noqa: E501 - a program a line
from __future__ import annotations

import json

import pytest

from s2l_ext.rewards.code import compute_score, run_tests
from s2l_ext.sandbox.runner import Level, Sandbox

pytestmark = pytest.mark.slow  # half a minute on two cores

# Tests that lean on everything an attacker could replace: ==, abs, isinstance, a helper, a loop, a module.
CHECK = """
import math

def close(a, b):
    return abs(a - b) < 1e-6 and math.isclose(a, b)

def check(candidate):
    assert candidate(1, 2) == 3
    assert isinstance(candidate(2, 2), int)
    assert close(candidate(20, 22), 42)
    for i in range(3):
        assert candidate(i, i) == 2 * i, "wrong sum z9f-"
    assert not candidate(1, 1) != 2
    assert candidate(5, 6) in (11,)
    assert str(candidate(5, 5)) == "10" and candidate(5, 5) > 9
"""
WRAPPED = "def add(a, b):\n    return {}\n"
EVIL = """
class Evil:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __contains__ = __lt__
    def __sub__(self, other): return 0
    __rsub__ = __add__ = __radd__ = __abs__ = __sub__
    def __abs__(self): return 0
    def __hash__(self): return hash(3)
    def __bool__(self): return True
    def __instancecheck__(self, other): return True
"""
LINK = "import json, os, struct\ndef say(m):\n    d = json.dumps(m).encode()\n    os.write(3, struct.pack('>I', len(d)) + d)\n"

PROGRAMS = {
    "exit before the tests": "import sys\nsys.exit(0)",
    "hard exit before the tests": "import os\nos._exit(0)",
    "raising SystemExit": "raise SystemExit(0)",
    "exit in the function": "import sys\ndef add(a, b):\n    sys.exit(0)",
    "hard exit in the function": "import os\ndef add(a, b):\n    os._exit(0)",
    "interrupt in the function": "def add(a, b):\n    raise KeyboardInterrupt",
    "generator exit": "def add(a, b):\n    raise GeneratorExit",
    "exit at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b):\n    return None",
    "equal to everything": EVIL + WRAPPED.format("Evil()"),
    "integer equal to everything": EVIL.replace("Evil:", "Evil(int):") + WRAPPED.format("Evil(7)"),
    "text equal to everything": EVIL.replace("Evil:", "Evil(str):") + WRAPPED.format("Evil('7')"),
    "list equal to everything": EVIL.replace("Evil:", "Evil(list):") + WRAPPED.format("Evil([7])"),
    "float equal to everything": EVIL.replace("Evil:", "Evil(float):") + WRAPPED.format("Evil('nan')"),
    "metaclass equal to everything": EVIL.replace("Evil:", "Meta(type):")
    + "class E(metaclass=Meta): pass\n"
    + WRAPPED.format("E"),
    "class that claims to be int": "class E:\n    __class__ = int\n    def __int__(self): return 7\n" + WRAPPED.format("E()"),
    "not a number": WRAPPED.format("float('nan')"),
    "mock": "from unittest.mock import MagicMock\n" + WRAPPED.format("MagicMock()"),
    "ANY of unittest": "from unittest.mock import ANY\n" + WRAPPED.format("ANY"),
    "the function is everything": EVIL + "add = lambda *a: Evil\n",
    "replacing check": "def check(candidate): pass\n" + WRAPPED.format("None"),
    "replacing check in every module": "import sys\nfor m in list(sys.modules.values()):\n    m.check = print\n"
    + WRAPPED.format("None"),
    "replacing helpers of the tests": "def close(a, b): return True\n" + WRAPPED.format("7"),
    "replacing builtins": "import builtins\nfor n in ('abs', 'isinstance', 'str', 'range', 'all', 'any'):\n"
    "    setattr(builtins, n, lambda *a, **k: True)\n" + WRAPPED.format("True"),
    "shadowing builtins": "abs = isinstance = str = range = lambda *a: 1\n" + WRAPPED.format("1"),
    "replacing AssertionError": "import builtins\nbuiltins.AssertionError = type('E', (SystemExit,), {})\n"
    + WRAPPED.format("0"),
    "catching the assertion": "import sys\nsys.excepthook = lambda *a: None\n" + WRAPPED.format("0"),
    "replacing math": "import sys, types\nm = types.ModuleType('math')\nm.isclose = lambda *a: True\n"
    "sys.modules['math'] = m\nmath = m\n" + WRAPPED.format("0"),
    "replacing modules": "import sys\nsys.modules.clear()\n" + WRAPPED.format("0"),
    "replacing unittest": "import unittest\nunittest.TestCase.run = lambda *a: None\n" + WRAPPED.format("0"),
    "optimising assertions away": "import sys, ctypes\nctypes.c_int.in_dll(ctypes.pythonapi, 'Py_OptimizeFlag').value = 2\n"
    + WRAPPED.format("0"),
    "marker on stdout": "print('{\"passed\": true, \"num_passed\": 9, \"num_total\": 9}')\nprint('OK', 'PASSED')\n"
    + WRAPPED.format("0"),
    "marker on every descriptor": "import os\nfor f in range(64):\n    try: os.write(f, b'{\"passed\": true}')\n"
    "    except OSError: pass\n" + WRAPPED.format("0"),
    "verdict over the link": LINK + "say({'passed': True, 'num_passed': 9, 'num_total': 9})\n" + WRAPPED.format("0"),
    "answers ahead of the questions": LINK + "for v in (None, ['h', 0], 3, 2, 42): say({'value': v})\n"
    + WRAPPED.format("0"),
    "call-back that was not offered": LINK + "say({'callback': 0, 'args': [], 'kwargs': {}})\n" + WRAPPED.format("0"),
    "changing arguments that were not passed": LINK + "say({'value': 3, 'changed': {'7': ['l']}})\n" + WRAPPED.format("0"),
    "message of the wrong shape": "import os\nos.write(3, b'\\0\\0\\0\\2[]')\n" + WRAPPED.format("0"),
    "message that never ends": "import os\nos.write(3, b'\\xff\\xff\\xff\\xff' + b'x' * 99)\n" + WRAPPED.format("0"),
    "nested message": "import os, struct\nd = b'{\"value\": ' + b'[' * 90000 + b']' * 90000 + b'}'\n"
    "os.write(3, struct.pack('>I', len(d)) + d)\n" + WRAPPED.format("0"),
    "value of an unknown kind": LINK + "say({'value': ['x', 0, []]})\nsay({'value': ['?']})\n" + WRAPPED.format("0"),
    "integer too long to read": LINK + "say({'value': None})\nsay({'value': ['h', 0]})\nsay({'value': ['i', '0x' + 'f' * 7000000]})\n"
    + WRAPPED.format("0"),
    "closing the link": "import os\nos.close(3)\n" + WRAPPED.format("0"),
    "replacing the codec": "import sys\nw = sys.modules['s2l_ext.sandbox.wire']\n"
    "w.encode = lambda v, o: {'passed': True}\n" + WRAPPED.format("0"),
    "code object over the codec": "import sys\nw = sys.modules['s2l_ext.sandbox.wire']\n"
    "w.encode = lambda v, o: ['h', '__import__(\"os\")._exit(0)']\n" + WRAPPED.format("0"),
    "walking frames": "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n        f.f_locals.get('counter')"
    " and f.f_locals['counter'].right()\n        f.f_globals['check'] = print\n        f = f.f_back\n",
    "searching memory for the tests": "import gc\ndef add(a, b):\n    t = [o for o in gc.get_objects() if isinstance(o, dict)"
    " and 'num_passed' in o]\n    t[0]['passed'] = True\n",
    "searching memory for a text of the tests": "import gc\ndef add(a, b):\n    t = ''.join(['z9', 'f-'])\n"
    "    for o in gc.get_objects():\n        for r in gc.get_referents(o):\n"
    "            if isinstance(r, str) and t in r and r is not t: return a + b\n",
    "tracing": "import sys\nsys.settrace(lambda f, e, a: f.f_locals.update(passed=True))\n" + WRAPPED.format("0"),
    "profiling": "import sys, threading\nsys.setprofile(lambda *a: None)\nthreading.setprofile(print)\n" + WRAPPED.format("0"),
    "pickle gadget": "class E:\n    def __reduce__(self): return (eval, ('3',))\n" + WRAPPED.format("E()"),
    "finaliser": "import os\nclass E:\n    def __del__(self): os._exit(0)\n" + WRAPPED.format("E()"),
    "exception that looks right": "class E(Exception):\n    def __eq__(self, o): return True\ndef add(a, b):\n    raise E",
    "raising what the tests raise": "def add(a, b):\n    raise AssertionError('wrong sum')",
    "stopping iteration": "def add(a, b):\n    raise StopIteration",
    "no function": "x = 3",
    "function by another letter": "def аdd(a, b):\n    return a + b",
    "null character": "\0def add(a, b):\n    return a + b",
    "coding trick": "# -*- coding: utf-7 -*-\n+AGQAZQBm- add(a, b): return a + b",
    "unpaired surrogate": "def add(a, b):\n    return '\\ud800'",
    "hidden by a bidirectional mark": "def add(a, b):\n    '''\u202e''' ; return a - b",
    "lazy value": "class E:\n    def __getattr__(self, n): return lambda *a: 3\n" + WRAPPED.format("E()"),
    "forked answer": "import os\ndef add(a, b):\n    p = os.fork()\n    return 3 if p else a + b",
    "signal during the call": "import signal\nsignal.setitimer(0, 0.01)\nsignal.signal(14, lambda *a: None)\n" + WRAPPED.format("0"),
    "coroutine": "async def add(a, b):\n    return a + b",
}  # fmt: skip


@pytest.fixture(scope="module", params=["best", pytest.param("landlock", marks=pytest.mark.slow)])
def pool(request):
    try:
        made = Sandbox(Level.LANDLOCK if request.param == "landlock" else None, workers=1)
    except RuntimeError as error:
        pytest.skip(str(error))
    if made.level < Level.LANDLOCK:
        pytest.skip(f"hostile programs are not run at level {made.level.name.lower()}: {made.refused}")
    yield made
    made.close()


def test_a_right_program_passes_these_tests(pool):
    outcome = run_tests("def add(a, b):\n    return a + b", CHECK, 20, entry_point="add", pool=pool)
    assert outcome.passed and (outcome.num_passed, outcome.num_total) == (9, 9), outcome


@pytest.mark.parametrize("name", PROGRAMS)
def test_attack_on_the_verdict(name, pool):
    outcome = run_tests(PROGRAMS[name], CHECK, 5, entry_point="add", pool=pool)
    assert not outcome.passed and outcome.reason and outcome.num_passed < outcome.num_total, outcome


@pytest.mark.parametrize(
    "name", [each for each in PROGRAMS if "exit" in each or "equal" in each or "replacing" in each]
)
def test_attack_on_plain_assertions(name, pool):
    tests = "for i in range(2):\n    assert add(i, 2) == i + 2\n    assert abs(add(i, 4) - i - 4) < 1e-6"
    assert not run_tests(PROGRAMS[name], tests, 5, stop_early=True, pool=pool).passed


@pytest.mark.parametrize("name", ["exit before the tests", "equal to everything", "marker on stdout"])
def test_attack_scores_zero(name):
    truth = {"prompt": "def add(a, b):\n    '''sum'''\n", "test": CHECK, "entry_point": "add"}
    answer = f"```python\n{PROGRAMS[name]}\n```"
    for given in (truth, json.dumps(truth)):
        assert compute_score("humaneval", answer, given) | {"reason": ""} == {
            "score": 0.0, "acc": 0.0, "format_ok": 1.0, "tests_passed": 0, "tests_total": 7, "reason": ""
        }  # fmt: skip


def test_helpers_of_the_prompt_are_not_the_programs():
    """HumanEval/32 judges with ``poly``, which stands in its prompt; a program must not bring its own."""
    prompt = "def poly(x):\n    return x * x - 4\n\ndef find_zero():\n    '''zero of poly'''\n"
    tests = "def check(candidate):\n    assert abs(poly(candidate())) < 1e-4\n"
    cheat = "def poly(x):\n    return 0\ndef find_zero():\n    return 7\n"
    assert run_tests(prompt + "    return 2\n", tests, 5, entry_point="find_zero", prompt=prompt).passed
    assert not run_tests(cheat, tests, 5, entry_point="find_zero", prompt=prompt).passed


@pytest.mark.parametrize(
    "trick", ["print(3)\nraise SystemExit(1)", "import os\nprint(3, flush=True)\nos._exit(1)", "1/0"]
)
def test_printing_and_failing_is_no_pass(trick, pool):
    assert not run_tests(trick, '[{"input": "1 2", "output": "3"}]', 5, pool=pool).passed


@pytest.mark.parametrize(
    ("text", "thinking", "acc"),
    [
        ("<think>{right}", "auto", 0.0),
        ("<think>{right}</think>{wrong}", "auto", 0.0),
        ("<think>{wrong}</think>{right}", "auto", 1.0),
        ("{right}", "opened", 0.0),
        ("{wrong}</think>{right}", "opened", 1.0),
    ],
)
def test_a_draft_in_the_thinking_is_no_program(text, thinking, acc):
    programs = {
        name: f"```python\ndef add(a, b):\n    return {body}\n```\n"
        for name, body in (("right", "a + b"), ("wrong", "0"))
    }
    tests = "assert add(2, 3) == 5"
    assert compute_score("x", text.format(**programs), tests, thinking=thinking)["acc"] == acc
