"""Forms of tests that data sets bring along, and the comparison of outputs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s2l_ext.errors import DataError

CALLER = """import json
try:
    called = Solution().{0}
except NameError:
    called = {0}
def _result(_given):
    return json.loads(json.dumps(called(*json.loads(_given)), default=lambda _: _.__float__()))
"""
"""``_result`` is what a function returned as JSON has it: tuples are lists, keys are text, fractions are numbers."""
TOLERANCE = 1e-6
SHOWN_CHARS = 80
NUMBER_CHARS = 64
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
IDENTIFIER = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True)
class FunctionTests:
    """Python source with assertions; with an ``entry_point`` it defines ``check(candidate)``."""

    source: str
    entry_point: str | None = None
    prompt: str = ""


@dataclass(frozen=True)
class InputOutput:
    """Pairs of standard input and expected standard output."""

    pairs: tuple[tuple[str, str], ...]


Tests = FunctionTests | InputOutput


def parse_tests(tests: Any, entry_point: str | None = None, prompt: str = "") -> Tests:
    """Read tests in any of the known forms; DataError for anything else, or no test at all.

    - text that is no JSON: Python source with assertions;
    - ``{"test": source, "entry_point": name, "prompt": source}`` (HumanEval; the last two are optional);
    - ``[{"input": text, "output": text}, ...]``, or ``{"inputs": [...], "outputs": [...]}``, optionally with
      ``fn_name``: inputs are then JSON arguments, one a line or a list, for that function or method of ``Solution``.
    """
    value = _loaded(tests)
    if isinstance(value, str):
        return _functions({"test": value, "entry_point": entry_point, "prompt": prompt})
    if isinstance(value, Mapping) and ("test" in value or "tests" in value):
        merged = {"entry_point": entry_point, "prompt": prompt, **value}
        return _functions({**merged, "test": value.get("test", value.get("tests"))})
    pairs, function = read_pairs(value)
    return _calls(pairs, function) if function else _texts(pairs)


def _loaded(tests: Any) -> Any:
    if not isinstance(tests, str):
        return tests
    if not tests.strip():
        raise DataError("the tests are empty")
    if tests.lstrip()[0] not in "[{":
        return tests
    try:
        return json.loads(tests)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the tests look like JSON but are not: {error}") from error


def _functions(value: Mapping[str, Any]) -> FunctionTests:
    source, name, prompt = value["test"], value.get("entry_point"), value.get("prompt") or ""
    if not isinstance(source, str) or not source.strip():
        raise DataError("the tests are empty" if source in (None, "") else "the tests are not text")
    if not isinstance(prompt, str):
        raise DataError(f"the prompt is {type(prompt).__name__}, not text")
    if name is not None and not (isinstance(name, str) and IDENTIFIER.fullmatch(name)):
        raise DataError(f"entry_point {name!r} is not the name of a function")
    return FunctionTests(source, name, prompt)


def read_pairs(tests: Any) -> tuple[list[tuple[Any, Any]], str | None]:
    """Inputs and outputs as they are given, and ``fn_name``. Raises DataError for another form."""
    value, function = _loaded(tests), None
    if isinstance(value, Mapping):
        function = value.get("fn_name")
        inputs, outputs = value.get("inputs"), value.get("outputs")
        if not isinstance(inputs, (list, tuple)) or not isinstance(outputs, (list, tuple)):
            raise DataError(f"the tests have the keys {sorted(map(str, value))}; expected test, or inputs and outputs")
        if len(inputs) != len(outputs):
            raise DataError(f"the tests have {len(inputs)} inputs but {len(outputs)} outputs")
        found = list(zip(inputs, outputs, strict=True))
    elif isinstance(value, (list, tuple)):
        found = [_pair(number, each) for number, each in enumerate(value, 1)]
    else:
        raise DataError(f"the tests are {type(value).__name__}; expected text, a list of pairs or a mapping")
    if not found:
        raise DataError("the tests hold no pair")
    if function is not None and not (isinstance(function, str) and IDENTIFIER.fullmatch(function)):
        raise DataError(f"fn_name {function!r} is not the name of a function")
    return found, function


def _pair(number: int, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, Mapping) or "input" not in value or "output" not in value:
        raise DataError(f"test {number} is not an object with input and output")
    if value.get("testtype", "stdin") != "stdin":
        raise DataError(f"test {number} has testtype {value['testtype']!r}; pass inputs, outputs and fn_name instead")
    return value["input"], value["output"]


def _texts(pairs: list[tuple[Any, Any]]) -> InputOutput:
    checked = []
    for number, pair in enumerate(pairs, 1):
        lists = [isinstance(part, list) and all(isinstance(line, str) for line in part) for part in pair]
        texts = ["\n".join(part) if lines else part for part, lines in zip(pair, lists, strict=True)]
        for name, part in zip(("input", "output"), texts, strict=True):
            if not isinstance(part, str):
                raise DataError(f"{name} of test {number} is {type(part).__name__}, not text")
        checked.append((texts[0], texts[1]))
    return InputOutput(tuple(checked))


def _calls(pairs: list[tuple[Any, Any]], function: str) -> FunctionTests:
    """Assertions that call ``function``, free or a method of ``Solution``, with JSON arguments.

    A result that is wanted as a list of one is right without the list too: APPS and TACO wrap results, and verl's
    ``prime_code`` takes both.
    """
    lines = [CALLER.format(function)]
    for number, (given, expected) in enumerate(pairs, 1):
        try:
            arguments = [json.loads(line) for line in given.splitlines()] if isinstance(given, str) else list(given)
            wanted = json.loads(expected) if isinstance(expected, str) else expected
        except (ValueError, TypeError) as error:
            raise DataError(f"test {number} of {function} is not JSON: {error}") from error
        one = isinstance(wanted, list) and len(wanted) == 1
        right = f"in json.loads({json.dumps([wanted, *wanted])!r})" if one else f"== json.loads({json.dumps(wanted)!r})"
        lines.append(f"assert _result({json.dumps(arguments)!r}) {right}")
    return FunctionTests("\n".join(lines))


def compare_output(printed: str, expected: str) -> str:
    """Why ``printed`` is not ``expected``; empty when it is.

    Blank lines at the end and white space around and between words are ignored. Where the expected word is a number
    with a point or exponent, a number within 1e-6 (relative or absolute) is as good; all other words must be equal.
    """
    have, want = _lines(printed), _lines(expected)
    for number, (left, right) in enumerate(zip(have, want, strict=False), 1):
        if not _same_words(left, right):
            return f"line {number}: printed {' '.join(left)[:SHOWN_CHARS]!r}"
    if len(have) != len(want):
        return f"{len(have)} lines printed instead of {len(want)}"
    return ""


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.rstrip().splitlines()]


def _same_words(have: list[str], want: list[str]) -> bool:
    return len(have) == len(want) and all(map(_same_word, have, want))


def _same_word(have: str, want: str) -> bool:
    if have == want:
        return True
    if (
        max(len(have), len(want)) > NUMBER_CHARS
        or want.lstrip("+-").isdecimal()
        or not NUMBER.fullmatch(want)
        or not NUMBER.fullmatch(have)
    ):
        return False
    return math.isclose(float(have), float(want), rel_tol=TOLERANCE, abs_tol=TOLERANCE)
