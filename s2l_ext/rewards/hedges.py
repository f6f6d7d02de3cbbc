"""Whether a text without a marked answer names several candidates, or denies the one that it names."""

from __future__ import annotations

import re

VALUE = r"(?:\$[^$\n]{1,80}\$|\\\([^\n]{1,80}?\\\)|[-\u2212]?\$?\d[\d,./]*|[-\u2212]?\\frac\{[^{}]*\}\{[^{}]*\})"
EITHER = re.compile(
    rf"{VALUE}(?:\s*%|\s+[a-z]+)?\s*,?\s*\bor\b\s*(?:maybe\s+|perhaps\s+|possibly\s+)?{VALUE}", re.IGNORECASE
)
DENIED = re.compile(
    rf"(?:\b(?:not|never|cannot be|can't be|isn't|wasn't|aren't|neither|except|other than|instead of|rather than"
    rf"|at least|at most|no (?:more|less|fewer) than|(?:more|less|greater|fewer|larger|smaller) than|up to)\b|\u2260)"
    rf"\s*(?:equal to\s+|be\s+|exactly\s+|simply\s+|just\s+|a\s+|the\s+)?:?\s*{VALUE}\W*$",
    re.IGNORECASE,
)
LISTED = re.compile(
    rf"(?:^|\b(?:is|are|be|was)|[:=])\s*{VALUE}(?:\s*(?:,\s|;|\band\b|&)\s*{VALUE})+\W*$", re.IGNORECASE
)
BETWEEN = re.compile(rf"\bbetween\s+{VALUE}\s+and\s+{VALUE}\W*$", re.IGNORECASE)
SCALE = r"hundred|thousand|million|billion|trillion|dozen"
SCALED = re.compile(rf"{VALUE}\s+(?:or (?:more|less|fewer)|{SCALE})\b\W*$", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
TAIL_CHARS = 300


def hedged(text: str) -> bool:
    """Whether the last statement with a value says "3 or 5", "3, 5", "between 3 and 5", "not 5" or "at least 5"."""
    sentences = [each for each in SENTENCE.split(text[-TAIL_CHARS:].strip()) if re.search(r"\d|\$|\\", each)]
    return bool(sentences) and any(form.search(sentences[-1]) for form in (EITHER, DENIED, LISTED, BETWEEN, SCALED))
