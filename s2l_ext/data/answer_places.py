"""Where a known answer stands in the text of a trace: its spellings, and the places that give it away."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from s2l_ext.data.values import as_list, plain_number

WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boldsymbol|bm|bf)\s*\{([^{}]*)\}")
SHORT_FRACTION = re.compile(r"\\frac(?:\{([^{}]+)\}|([^{}\s]))(?:\{([^{}]+)\}|([^{}\s]))")
UNIT = re.compile(r"(?<=\d)[a-z]+$|(?<=\})[a-z]+$", re.IGNORECASE)
NUMBER = re.compile(r"([-+]?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")
FRACTION = re.compile(r"([-+]?)(?:\\frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")
NO_MEANING = re.compile(
    r"\\[,;:! ]|\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|\\?\$|\\?%|\^\{?\\circ\}?|[~*\s]"
)
SEPARATOR = r"(?:,|\{,\}|\\[,;:! ]|[ \u00a0\u2009\u202f])?"
POINT = r"(?:\.|,|\{,\})"
LEADING = r"(?:\\?[$€£(\[{]|\\(?:boxed|text\w*|mathbf|mathrm)?\{|\*|~|\s)*"
EQUALS = re.compile(rf"(?:=|≈|\\approx)\s*{LEADING}$")
ANSWER_IS = re.compile(
    r"\b(?:answer|result|solution)\b[^\n.=:]{0,30}?(?:\b(?:is|be|was|equals|becomes|comes out (?:to|as))\b|[:=])"
    rf"(?:\s+(?:just|simply|therefore|thus|indeed|actually|probably|exactly|then))?[:\s]*{LEADING}(?:[a-zA-Z]\s*=\s*)?$",
    re.IGNORECASE,
)
CONTINUED = re.compile(r"\s*(?:[-+*/×·÷^]|\\(?:cdot|times|div)\s?)\s*[\d(\\$]")
RESULT = re.compile(r"=|≈|\\approx")
ANY_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")
REACH = 80
"""Characters before an answer in which the words that announce it are looked for."""
LONGEST_ANSWER = 200
DISTINCT_DIGITS = 3
DISTINCT_CHARS = 4
"""Whole numbers of this many digits, and expressions of this many characters, seldom occur by chance."""


def known_answer(truth: Any) -> str | None:
    """The right answer of a row as text: a text, a number, or a list of one of these. None for several answers and
    for more than 200 characters, as tests of a program are."""
    items = as_list(truth)
    single = items[0] if items is not None and len(items) == 1 else truth
    text = plain_number(single) or single
    return text if isinstance(text, str) and len(text) <= LONGEST_ANSWER else None


def canonical(text: str) -> str:
    """One spelling of an answer: without blanks, units, font commands, thousands separators, ``x =``; numbers exact."""
    text = text.strip().rstrip(".").replace("{,}", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    bare = WRAPPED.sub(lambda match: "" if match.start() and match[1].strip().isalpha() else match[1], text)
    bare = NO_MEANING.sub("", bare)
    bare = SHORT_FRACTION.sub(lambda m: rf"\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", bare)
    bare = re.sub(r"^[a-zA-Z](?:_\{?\w+\}?)?=(?=.)", "", bare)
    bare = re.sub(r"^\(([-\d.,]+)\)$", lambda m: m[1] if NUMBER.fullmatch(m[1]) else m[0], bare).rstrip(".")
    value = value_of(UNIT.sub("", bare))
    return bare if value is None else str(value)


def value_of(text: str) -> Fraction | None:
    """The number that a canonical spelling stands for: whole, decimal or a fraction; None for anything else."""
    if number := NUMBER.fullmatch(text):
        return Fraction(number[1] + number[2].replace(",", ""))
    if parts := FRACTION.fullmatch(text):
        top, bottom = int(parts[2] or parts[4]), int(parts[3] or parts[5])
        return None if not bottom else Fraction(top, bottom) * (-1 if parts[1] == "-" else 1)
    return None


@lru_cache(maxsize=256)
def spellings(answer: str) -> re.Pattern[str]:
    """Finds the answer standing alone: numbers with any thousands separator, decimal comma or kind of fraction."""
    name = canonical(answer)
    value = value_of(name)
    if value is None:
        return re.compile(_expression(name or answer))
    size = abs(value)
    found = [] if size.denominator == 1 else [_fraction(size)]
    found += [_decimal(digits) for digits in _decimals(size)]
    sign = r"[-−–]\s*" if value < 0 else r"(?<![\w.\\])(?<!\d[,.])"
    return re.compile(sign + "(?:" + "|".join(found) + ")")


def _decimals(size: Fraction) -> list[str]:
    for places in range(9):
        scaled = size * 10**places
        if scaled.denominator == 1:
            digits = str(scaled.numerator).rjust(places + 1, "0")
            return [digits[: len(digits) - places] + ("." + digits[-places:] if places else "")]
    return []


def _decimal(text: str) -> str:
    whole, _, part = text.partition(".")
    first = len(whole) % 3 or 3
    groups = [whole[:first], *(whole[i : i + 3] for i in range(first, len(whole), 3))]
    spelled = "0?" if whole == "0" and part else SEPARATOR.join(groups)
    tail = rf"{POINT}{part}0*" if part else rf"(?:{POINT}0+)?"
    return rf"0{{0,2}}{spelled}{tail}(?!\d|[.,]\d)"


def _fraction(size: Fraction) -> str:
    top, bottom = size.numerator, size.denominator
    latex = rf"\\?[dt]?frac\s*(?:\{{\s*{top}\s*\}}|{top}(?!\d))\s*(?:\{{\s*{bottom}\s*\}}|{bottom}(?!\d))"
    return rf"\\{latex.removeprefix(chr(92) * 2 + '?')}|{top}\s*/\s*{bottom}(?!\d|[.,]\d)"


def _expression(name: str) -> str:
    parts = [r"\\[dt]?frac" if part == r"\frac" else re.escape(part) for part in re.findall(r"\\frac|[\s\S]", name)]
    before = r"(?<![\w.\\])" if re.match(r"\w", name) else ""
    after = (r"(?!\d|[.,]\d)" if name[-1].isdecimal() else r"(?!\w)") if re.search(r"\w$", name) else ""
    return before + r"(?:\s|\\[,;:! ]|\\left|\\right)*".join(parts) + after


def first_place(trace: str, answer: str) -> int | None:
    """Where an answer that nothing marks is given: first computed or announced, else where it stands last."""
    if not answer.strip():
        return None
    found = [match.start() for match in spellings(answer).finditer(trace)]
    told = [start for start in found if _follows(EQUALS, trace, start) or _follows(ANSWER_IS, trace, start)]
    return next(iter(told or found[-1:]), None)


def given_away(trace: str, answer: str) -> int | None:
    """The first place of a text without its marked answers that gives the answer away; None if there is none.

    That is where it is announced ("the answer is X"), where it is computed (``= X``), and where it is the last number
    or the last result of the text. Short whole numbers occur by chance: of two digits, a computed one counts in the
    second half of the text; of one digit, not at all.
    """
    if not answer.strip():
        return None
    found = list(spellings(answer).finditer(trace))
    start = _computed_from(trace, answer)
    told = [match.start() for match in found if _follows(ANSWER_IS, trace, match.start())]
    computed = [match for match in found if match.start() >= start and _follows(EQUALS, trace, match.start())]
    told += [match.start() for match in computed if not CONTINUED.match(trace, match.end())]
    numbers = [match.start() for match in ANY_NUMBER.finditer(trace)] if value_of(canonical(answer)) is not None else []
    results = [match.end() for match in RESULT.finditer(trace)]
    ends = [_start_of_last_numbers(found, numbers), _start_of_last_results(trace, found, results)]
    return min([*told, *(end for end in ends if end is not None)], default=None)


def _computed_from(trace: str, answer: str) -> int:
    if is_distinct(answer):
        return 0
    return len(trace) // 2 if len(canonical(answer).lstrip("-")) > 1 else len(trace)


def is_distinct(answer: str) -> bool:
    """Whether an answer seldom stands in a text by chance."""
    name = canonical(answer)
    value = value_of(name)
    if value is None:
        return len(name) >= DISTINCT_CHARS
    return value.denominator > 1 or len(str(abs(value))) >= DISTINCT_DIGITS


def _follows(words: re.Pattern[str], trace: str, start: int) -> bool:
    return words.search(trace[max(0, start - REACH) : start]) is not None


def _start_of_last_numbers(found: list[re.Match[str]], numbers: list[int]) -> int | None:
    """The start of the last numbers of a text that are all the answer."""
    first = None
    for match in reversed(found):
        while numbers and match.start() <= numbers[-1] < match.end():
            numbers.pop()
            first = match.start()
        if numbers and numbers[-1] > match.start():
            break
    return first


def _start_of_last_results(trace: str, found: list[re.Match[str]], results: list[int]) -> int | None:
    """The start of the answer after the last equals signs of a text that are all followed by it."""
    first, places = None, {match.start() for match in found}
    for end in reversed(results):
        start = next((s for s in range(end, min(end + 12, len(trace))) if s in places), None)
        if start is None or not _follows(EQUALS, trace, start):
            break
        first = start
    return first
