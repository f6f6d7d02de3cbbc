"""Whether a text without a marked answer names several candidates, or denies the one that it names."""

from __future__ import annotations

import re

VALUE = r"(?:\$[^$\n]{1,80}\$|\\\([^\n]{1,80}?\\\)|[-\u2212]?\$?\d[\d,./]*|[-\u2212]?\\frac\{[^{}]*\}\{[^{}]*\})"
REST = r"[^\d$\\]*$"
"""No other value follows."""
EITHER = re.compile(
    rf"{VALUE}(?:\s*%|\s+[a-z]+)?\s*,?\s*\bor\b\s*(?:maybe\s+|perhaps\s+|possibly\s+)?{VALUE}", re.IGNORECASE
)
EITHER_NAMED = re.compile(rf"\b([a-z])\s*=\s*{VALUE}(?:\s*,?\s*\bor\b\s*\1\s*=\s*{VALUE})+{REST}", re.IGNORECASE)
NEGATION = r"not|never|cannot be|can't be|isn't|wasn't|aren't|neither|except|other than|instead of|rather than"
DENIED = re.compile(
    rf"(?:\b(?:{NEGATION}|at least|at most|no (?:more|less|fewer) than|(?:more|less|greater|fewer|larger|smaller) than"
    rf"|up to)\b|\u2260)"
    rf"\s*(?:equal to\s+|be\s+|exactly\s+|simply\s+|just\s+|a\s+|the\s+)?:?\s*{VALUE}{REST}",
    re.IGNORECASE,
)
AND = r"(?:\s*(?:,\s+(?:and\b)?|;|\band\b|&)\s*)"
LISTED = re.compile(rf"(?:^|\b(?:is|are|be|was)|[:=])\s*{VALUE}(?:{AND}{VALUE})+\W*$", re.IGNORECASE)
LISTED_NAMED = re.compile(rf"\b([a-z])\s*=\s*{VALUE}(?:{AND}\1\s*=\s*{VALUE})+\W*$", re.IGNORECASE)
BETWEEN = re.compile(rf"\bbetween\s+{VALUE}\s+and\s+{VALUE}\W*$", re.IGNORECASE)
SCALE = (
    r"(?:hundred|thousand|million|billion|trillion|dozen)s?"
    r"|halves|thirds|fourths|fifths|sixths|sevenths|eighths|ninths|(?:ten|hundred|thousand|million)ths?"
)
SCALED = re.compile(rf"{VALUE}\s+(?:or (?:more|less|fewer)|{SCALE})\b(?!-){REST}", re.IGNORECASE)
PART = re.compile(
    rf"\b(?:half|(?:third|quarter|fourth|fifth|tenth)s?) of\s+{VALUE}{REST}|\b(?:twice|double|triple)\s+{VALUE}\W*$",
    re.IGNORECASE,
)
FORMS = (EITHER, EITHER_NAMED, DENIED, LISTED, LISTED_NAMED, BETWEEN, SCALED, PART)
CORRECTED = re.compile(
    rf"\b(?:(is|are|was)\s+not|(is)n't)\s+{VALUE}\s*(?:[;,]\s*(?:it|that|this|the answer)(?:\s+is|'s)|,?\s*but)"
    rf"\s+(?=(?:really\s+|actually\s+)?{VALUE})",
    re.IGNORECASE,
)
CONTRASTED = re.compile(
    rf"({VALUE})\s*,?\s*\b(?:and\s+)?(?:not|rather than|instead of)\s+{VALUE}(?=\W*(?:\n|$))", re.IGNORECASE
)
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
TAIL_CHARS = 300


def hedged(text: str) -> bool:
    """Whether the last statement with a value says "3 or 5", "3, 5", "between 3 and 5", "not 5" or "at least 5"."""
    sentences = [each for each in SENTENCE.split(text[-TAIL_CHARS:].strip()) if re.search(r"\d|\$|\\", each)]
    return bool(sentences) and any(form.search(sentences[-1]) for form in FORMS)


def affirmed(text: str) -> str:
    """``text`` with the right value alone where it says "not 5; it is 3" or "3, not 5" in the end."""
    head, tail = text[:-TAIL_CHARS], text[-TAIL_CHARS:]
    tail = CORRECTED.sub(lambda found: f"{found[1] or found[2]} ", tail)
    return head + CONTRASTED.sub(r"\1", tail)
