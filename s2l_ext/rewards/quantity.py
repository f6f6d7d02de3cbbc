"""Is a physical quantity right? Numbers by relative difference, as science writes them; everything else by math-verify.

math-verify compares numbers at six decimals, where 1e-20 equals 3e-20, and does not read ``7.5e7``.
"""

from __future__ import annotations

import math
import re
from typing import Any

from s2l_ext.rewards import math as mathematics
from s2l_ext.rewards import spelling
from s2l_ext.rewards.extraction import extract
from s2l_ext.rewards.gold_reading import as_text
from s2l_ext.rewards.math_settings import Settings, parse

TOLERANCE = 1e-4
"""Relative; that of Qwen2.5-Math's evaluation (grader.py, numeric_equal)."""
TEN = r"10(?:\^|\*\*)"
POWER = r"\{?([-+]?\d{1,4})\}?"
NUMBER = re.compile(
    rf"([-+]?)(?:{TEN}{POWER}|(\d{{1,60}}(?:\.\d{{0,60}})?|\.\d{{1,60}})(?:(?:[eE]|(?:\\times|\\cdot|\*|×){TEN}){POWER})?)"
)
UNIT = re.compile(r"(?:/?\\(?:text|mathrm|textrm|mbox)\{[^{}]*\}(?:\^\{?[-+]?\d\}?)?)*")
COMMAND = re.compile(r"\\[A-Za-z]+")
SPACE = re.compile(r"\s|\\[,;:! ]|~|\$|\{,\}|\\(?:left|right)(?![a-z])|(?<=\d),(?=\d{3}(?!\d))")


def number(text: str) -> float | None:
    """The number that ``text`` is, such as ``3\\times 10^{-5}\\text{ m}``; None for all else, as 5 million."""
    plain = SPACE.sub("", text)
    found = NUMBER.match(plain)
    words = COMMAND.sub(" ", text)
    if found is None or not UNIT.fullmatch(plain, found.end()) or spelling.qualified(words):
        return None
    sign, power_alone, digits, power = found.groups()
    return float(f"{sign}{digits or 1}e{power or power_alone or 0}")


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, Any]:
    """verl's ``custom_reward_function`` (path ``pkg://s2l_ext.rewards.quantity``), with keywords and result of the
    mathematical reward. Where the marked answer and the truth are both numbers (a unit in ``\\text{}`` is passed over),
    right means a relative difference of at most 1e-4.
    """
    settings = parse(Settings, kwargs)
    gold = as_text(ground_truth)
    found = extract(str(solution_str or ""), settings.extraction, settings.thinking)
    have, want = None if found.whole else number(found.answer), number(gold)
    if have is None or want is None or not math.isfinite(want):
        return mathematics.compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)
    verdict = mathematics.Verdict(math.isclose(have, want, rel_tol=TOLERANCE), found.answer)
    return mathematics.shaped(verdict, found, settings)
