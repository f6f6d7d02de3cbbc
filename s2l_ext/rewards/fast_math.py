r"""Verdicts that need no computer algebra: equal texts, integers, decimals and simple fractions.

A verdict is given only where math-verify 0.9.0 gives the same; everything else is left to it. What that rests on:

- without a delimiter an answer reaches its parser as ``\boxed{answer}``; equal input gives equal expressions or, when
  none can be read, equal texts, so it is right;
- integers and fractions become exact numbers and are compared exactly;
- a decimal becomes a 53-bit float and is compared after rounding to 6 places, so values equal with at most 6 places
  are equal, and values more than 2e-6 apart are not. Between the two, and beyond 15 digits, math-verify is asked;
- in free text without ``answer`` and ``\boxed`` it takes the match that ends last, so a number that ends the text.

``benchmarks/math_reward.py`` compares the two on 100,000 generated pairs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

PLACES = 6
APART = Fraction(2, 10**PLACES)
EXACT_DIGITS, FLOAT_DIGITS = 30, 15
FLOAT_RANGE = 10**9
SHORT_CHARS = 200
"""A text of one line up to this length is also read as if it were nothing but an answer."""

DELIMITED = re.compile(r"(?<!\\)\$|\\\(|\\\[|\\boxed")
MAGNITUDE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
DECIMAL = re.compile(rf"(-?)(?:\\\$)?({MAGNITUDE})|\+([0-9]+)")
RATIO = re.compile(r"(-?)([0-9]+)/([0-9]+)|(-?)\\[dt]?frac\{(-?)([0-9]+)\}\{([0-9]+)\}")
THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,\\!)(?=[0-9]{3})")
IN_DOLLARS = re.compile(r"\$([^$]*)\$")
LAST_NUMBER = re.compile(
    r"(?:^|[A-Za-z:=])(?:^|(?<==)|\s+)\$?"
    r"((?:-(?!0[0-9]))?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?)\Z"
)
ANCHORS = re.compile(r"answer|\\boxed", re.IGNORECASE)
SYNONYMS = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\left([(\[|])|\\right([)\]|])"), r"\1\2"),
)


@dataclass(frozen=True)
class Value:
    """A number as math-verify reads it; ``digits`` counts those written, ``exact`` is False for a float."""

    value: Fraction
    digits: int
    exact: bool


def verdict(answer: str, gold: str, whole: bool = False) -> tuple[bool, str] | None:
    """Whether ``answer`` (final, or with ``whole`` the text in which to find it) equals ``gold``, and the answer as
    found; None when math-verify has to say.
    """
    if whole:
        return _whole(answer, gold)
    if same_text(answer, gold):
        return True, answer
    equal = _equal(number(answer), number(gold))
    return None if equal is None else (equal, answer)


def _whole(text: str, gold: str) -> tuple[bool, str] | None:
    match = LAST_NUMBER.search(text[-SHORT_CHARS:])
    if match is None or match.start() == 0 < len(text) - SHORT_CHARS or ANCHORS.search(text):
        return None
    equal = _equal(number(match[1]), number(gold))
    if equal is None or (not equal and len(text) <= SHORT_CHARS and "\n" not in text):
        return None
    return equal, _spelt(match[1])


def _spelt(found: str) -> str:
    """A number as math-verify reports it."""
    integer, point, places = found.replace(",", "").partition(".")
    return (integer.lstrip("0") or "0") + point + places


def same_text(answer: str, gold: str) -> bool:
    r"""Whether both reach math-verify's parser as the same text (``\dfrac`` is ``\frac``, ``\left(`` is ``(``)."""
    first, second = _normal(answer), _normal(gold)
    return bool(first) and first == second and _plain(first)


def _normal(text: str) -> str:
    text = text.strip()
    if "\\" in text:
        for pattern, replacement in SYNONYMS:
            text = pattern.sub(replacement, text)
    return text


def _plain(text: str) -> bool:
    """Without delimiters, and nothing in it ends the box that it is put into."""
    if DELIMITED.search(text):
        return False
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0 and not text.endswith("\\")


def number(text: str) -> Value | None:
    """The number that ``text`` is: an integer, a decimal or a fraction of integers, perhaps in dollars."""
    text = text.strip()
    inner = IN_DOLLARS.fullmatch(text)
    text = THOUSANDS.sub(",", inner[1].strip() if inner else text)
    return _decimal(text) or _ratio(text)


def _decimal(text: str) -> Value | None:
    match = DECIMAL.fullmatch(text)
    if match is None:
        return None
    digits = match[3] or match[2].replace(",", "")
    if len(digits) > EXACT_DIGITS:
        return None
    size = Fraction(digits if digits[0] != "." else "0" + digits)
    return Value(-size if match[1] == "-" else size, len(digits), "." not in digits)


def _ratio(text: str) -> Value | None:
    match = RATIO.fullmatch(text)
    if match is None:
        return None
    top, bottom = match[2] or match[6], match[3] or match[7]
    if max(len(top), len(bottom)) > EXACT_DIGITS or not int(bottom):
        return None
    signs = [sign for sign in (match[1], match[4], match[5]) if sign]
    value = Fraction(int(top), int(bottom)) * (-1) ** len(signs)
    return Value(value, max(len(top), len(bottom)), True)


def _equal(first: Value | None, second: Value | None) -> bool | None:
    if first is None or second is None:
        return None
    if first.exact and second.exact:
        return first.value == second.value
    if max(first.digits, second.digits) > FLOAT_DIGITS or max(abs(first.value), abs(second.value)) >= FLOAT_RANGE:
        return None
    if first.value == second.value:
        return True if (first.value * 10**PLACES).denominator == 1 else None
    return False if abs(first.value - second.value) > APART else None
