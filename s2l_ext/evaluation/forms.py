"""What a row's answer is: text, the letter of an option, or tests. Each form may add columns for the prompt."""

from __future__ import annotations

import base64
import hashlib
import json
import pickletools
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from s2l_ext.data import values
from s2l_ext.errors import DataError
from s2l_ext.rewards.code_tests import parse_tests
from s2l_ext.rewards.livecodebench import separate_tests
from s2l_ext.utils import json_text

MOST_TEST_BYTES = 1 << 30
TEXTS = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
AROUND_TEXTS = ("PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "STOP")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WITH_STARTER = "Use this starter code for the program, and answer with the program between these delimiters.\n{fence}"
WITHOUT_STARTER = (
    "Read the inputs from stdin, solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Answer with the program between these delimiters.\n{fence}"
)


class ParsedAnswer(NamedTuple):
    """``columns`` are new ones for the prompt, ``extra`` is for the reward."""

    truth: str
    columns: dict[str, Any]
    extra: dict[str, Any]


def require_column(row: dict[str, Any], name: str, where: str) -> Any:
    """The row's value. Raises DataError with the columns that are there, or when it is blank."""
    value = row.get(name)
    if value is None and name in row:
        raise DataError(f"{where}: column '{name}' is blank (null). Fill it, or remove the row.")
    if value is None:
        raise DataError(f"{where}: column '{name}' is missing. Found: {', '.join(map(str, row)) or 'none'}.")
    if isinstance(value, str) and not value.strip():
        raise DataError(f"{where}: column '{name}' is blank. Fill it, or remove the row.")
    return value


def text(row: dict[str, Any], answer: str, pattern: str | None, where: str) -> ParsedAnswer:
    """The column as exact text, or what ``pattern`` finds last in it. A list is one answer, joined by commas; CSV files
    hold it as Python or JSON writes it, and ``[0, 1]``, an interval, is no such list. Raises DataError: no answer is
    there."""
    value = require_column(row, answer, where)
    parts = [value] if (listed := values.as_list(value)) is None else listed
    content = ", ".join(values.answer_text(part, where, f"column '{answer}'") for part in parts)
    found = re.findall(pattern, content, re.MULTILINE) if pattern else []
    truth = str(found[-1] if found else content).strip()
    if not truth:
        raise DataError(f"{where}: column '{answer}' holds no answer. Fill it, or remove the row.")
    return ParsedAnswer(truth, {}, {})


def prompt_value(row: dict[str, Any], name: str, where: str) -> str:
    """The column as text of a prompt. Raises DataError for control characters, and what is neither text nor number."""
    value = require_column(row, name, where)
    number = values.plain_number(value)
    if number is None and not isinstance(value, str):
        raise DataError(f"{where}: column '{name}' is {values.shown(value)}. A prompt needs text or a number.")
    fault = values.text_fault(value) if isinstance(value, str) else None
    if fault:
        raise DataError(f"{where}: column '{name}' {fault}")
    return number or str(value)


def choices(row: dict[str, Any], answer: str, column: str, where: str) -> ParsedAnswer:
    """Options with letters of their own, ``{label: [...], text: [...]}`` or a list of ``{label, text}``; adds
    ``options``, one a line. The truth is the right letter; equal texts are right too."""
    given = require_column(row, column, where)
    try:
        listed = given if isinstance(given, dict) else {key: [one[key] for one in given] for key in ("label", "text")}
        pairs = zip(listed["label"], listed["text"], strict=True)
        texts = {str(label).strip(): str(text).strip() for label, text in pairs}
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{where}: column '{column}' is {values.shown(given)}, not labels and texts of options."
        ) from None
    right = str(require_column(row, answer, where)).strip()
    if list(texts) != list(LETTERS[: len(texts)]) or right not in texts or not all(texts.values()):
        raise DataError(
            f"{where}: column '{answer}' is '{right}' and column '{column}' has the options "
            f"{', '.join(texts) or 'none'}. Options are A, B, ... in order, none blank, and the answer is one of them."
        )
    truth = "".join(letter for letter, text in texts.items() if text == texts[right])
    lines = "\n".join(f"{letter}) {text}" for letter, text in texts.items())
    return ParsedAnswer(truth, {"options": lines}, {"options": len(texts)})


def options(row: dict[str, Any], right: str, wrong: Sequence[str], where: str) -> ParsedAnswer:
    """Options in an order that only their texts decide, as columns ``A``, ``B``, ...; the truth is the right letter."""
    texts = [str(require_column(row, name, where)).strip() for name in (right, *wrong)]
    order = sorted(range(len(texts)), key=lambda i: hashlib.sha256(f"{texts!r} {i}".encode()).digest())
    letters = LETTERS[: len(order)]
    columns = {letter: texts[place] for letter, place in zip(letters, order, strict=True)}
    truth = "".join(letter for letter in letters if columns[letter] == texts[0])
    return ParsedAnswer(truth, columns, {"options": len(texts)})


def humaneval(row: dict[str, Any], answer: str, where: str) -> ParsedAnswer:
    """Tests that define ``check(candidate)``; adds ``code``, the function to complete."""
    prompt, test, name = (str(require_column(row, column, where)) for column in ("problem", answer, "entry_point"))
    truth = {"style": "humaneval", "prompt": prompt, "test": test, "entry_point": name}
    _refuse_malformed(lambda: parse_tests(truth), where)
    if not re.search(rf"^def {re.escape(name)}\b", prompt, re.MULTILINE):
        raise DataError(f"{where}: column 'entry_point' is '{name}', which column 'problem' does not define.")
    return ParsedAnswer(json.dumps(truth), {"code": prompt.rstrip()}, {})


def livecodebench(row: dict[str, Any], answer: str, where: str) -> ParsedAnswer:
    """Public and private tests together; adds ``format``, which holds the starter code where there is some."""
    hidden = _decode_tests(require_column(row, answer, where), answer, where)
    tests = [*_decode_tests(row.get("public_test_cases") or "[]", "public_test_cases", where), *hidden]
    name = _read_metadata(row, where).get("func_name")
    kind = "functional" if name else "stdin"
    for number, test in enumerate(tests, 1):
        if not isinstance(test, dict) or not {"input", "output"} <= test.keys() or test.get("testtype", kind) != kind:
            raise DataError(f"{where}: test {number} is {str(test)[:80]}, not an input and output of testtype {kind}.")
    pairs = {"inputs": [test["input"] for test in tests], "outputs": [test["output"] for test in tests]}
    truth = json.dumps({**pairs, **({"fn_name": name} if name else {})})
    _refuse_malformed(lambda: list(separate_tests(truth)), where)
    starter = str(row.get("starter_code") or "").strip("\n")
    fence = f"```python\n{starter or '# YOUR CODE HERE'}\n```"
    return ParsedAnswer(truth, {"format": (WITH_STARTER if starter else WITHOUT_STARTER).format(fence=fence)}, {})


TESTS: dict[str, Callable[[dict[str, Any], str, str], ParsedAnswer]] = {
    "humaneval": humaneval,
    "livecodebench": livecodebench,
}


def _refuse_malformed(read: Callable[[], Any], where: str) -> None:
    try:
        read()
    except DataError as error:
        raise DataError(f"{where}: {error}. Repair the row's tests, or remove it.") from error


def _read_metadata(row: dict[str, Any], where: str) -> dict[str, Any]:
    value = row.get("metadata") or "{}"
    try:
        return dict(json_text.loads(value) if isinstance(value, str) else value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: column 'metadata' is no JSON object ({error}).") from error


def _read_pickled_text(pickled: bytes) -> str:
    """The text of a pickle that holds one text and nothing else, or ValueError. Nothing is unpickled: a pickle can run
    code."""
    texts = []
    for opcode, value, _ in pickletools.genops(pickled):
        if opcode.name in TEXTS:
            texts.append(value)
        elif opcode.name not in AROUND_TEXTS:
            raise ValueError(f"a pickle with {opcode.name}, not with a text alone")
    if len(texts) != 1:
        raise ValueError(f"a pickle with {len(texts)} texts, not one")
    return str(texts[0])


def _unpack(packed: bytes) -> bytes:
    """zlib makes a thousand times as much of nothing but zeros."""
    stream = zlib.decompressobj()
    content = stream.decompress(packed, MOST_TEST_BYTES)
    if not stream.eof:
        raise ValueError(f"cut short, or more than {MOST_TEST_BYTES:,} bytes")
    return content


def _decode_tests(value: Any, column: str, where: str) -> list[Any]:
    """A list of tests: as it is, as JSON, or as published (base64 of zlib of a pickled JSON text)."""
    try:
        if isinstance(value, str) and not value.lstrip().startswith("["):
            value = _read_pickled_text(_unpack(base64.b64decode(value, validate=True)))
        tests = json_text.loads(value) if isinstance(value, str | bytes) else value
        if not isinstance(tests, list):
            raise TypeError(f"{type(tests).__name__}, not a list")
        return tests
    except (ValueError, TypeError, zlib.error) as error:
        raise DataError(f"{where}: column '{column}' holds no readable tests ({error}).") from error
