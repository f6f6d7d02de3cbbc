r"""What the texts of two answers say and math-verify does not read: ratios, times of day, primes, chains, gcd and lcm.

Texts come in the spelling of :mod:`spelling`.
"""

from __future__ import annotations

import re

CLOCK = re.compile(r"(.*\d)\\text\{ ([ap]m)\}")
"""As :func:`spelling.plain` writes 7:30 p.m."""
LEFT = re.compile(r"(?<![<>!\\:])=(?!=)")
BRACKET = re.compile(r"\\[{}]|[()\[\]{}]|:")
ZERO = re.compile(r"0+")
LETTER = re.compile(r"\\[A-Za-z]+(?:\s*\{[A-Za-z ]*\})?|([A-Za-z])\s*('*)")
BARE = re.compile(r"(?![ei]$)[A-Za-z](?:_(?:\w|\{\w+\}))?|\\(?!pi$)[A-Za-z]+")
SEVERAL = re.compile(r"[,;]|\\text|\\q?quad|\b(?:and|or)\b")
DIFFERENTIAL = r"(?:d|\\partial)\s*(?:\^\s*\{?\d\}?\s*)?"
DERIVATIVE = re.compile(
    rf"\\frac\s*\{{\s*{DIFFERENTIAL}\\?[A-Za-z]+\s*\}}\s*\{{\s*{DIFFERENTIAL}\\?[A-Za-z]+\s*(?:\^\s*\{{?\d\}}?\s*)?\}}"
)
DIVISOR = re.compile(
    r"(?:\\(?:operatorname|text|mathrm)\s*\{\s*(gcd|lcm)\s*\}|\\?(?<![A-Za-z])(gcd|lcm))\s*"
    r"\(([^()]*)\)"
)
FREE = "uvwqhkmnprstzxyabcfg"


def clock(text: str) -> tuple[str, str]:
    """The time and ``am`` or ``pm``; the second is empty where the text does not say it."""
    found = CLOCK.fullmatch(text)
    return (found[1], found[2]) if found else (text, "")


def ratio(text: str) -> list[str]:
    r"""The terms of ``3:4:5`` or ``a:b:c=3:4:5``; empty with fewer than two colons."""
    sides = [_terms(side) for side in LEFT.split(text.replace("\\colon", ":"))]
    right = sides[-1]
    named = len(sides) == 1 or (len(sides) == 2 and len(sides[0]) == len(right))
    return right if named and len(right) > 2 and all(right) and not SEVERAL.search(text) else []


def unlike_ratios(gold: str, answer: str) -> bool:
    """Whether one is a ratio of three or more terms, and the other has another number of terms, or other names."""
    first, second = ratio(gold), ratio(answer)
    zeros = [[bool(ZERO.fullmatch(term)) for term in terms] for terms in (first, second)]
    names = {"".join(LEFT.split(text)[0].split()) for text in (gold, answer) if "=" in text}
    return zeros[0] != zeros[1] or (bool(first) and ("=" in gold) and ("=" in answer) and len(names) > 1)


def cross_products(gold: str, answer: str) -> list[tuple[str, str]]:
    """Pairs that are all equal when two ratios of three or more terms are; empty where the two are none."""
    first, second = ratio(gold), ratio(answer)
    if not first or len(first) != len(second):
        return []
    base = next((place for place, term in enumerate(first) if not ZERO.fullmatch(term)), 0)
    return [
        (f"({one})\\cdot({second[base]})", f"({other})\\cdot({first[base]})")
        for place, (one, other) in enumerate(zip(first, second, strict=True))
        if place != base
    ]


def other_primes(gold: str, answer: str) -> bool:
    """Whether a letter of both has primes in one that it has not in the other: f'(2) and f(2)."""
    if gold.startswith("'") or answer.startswith("'"):  # quoted
        return False
    first, second = _primes(gold), _primes(answer)
    return any(first[letter] != second[letter] for letter in first.keys() & second.keys())


def other_chain(gold: str, answer: str) -> bool:
    """Whether of two equations one is a chain, and other symbols are set equal in it: a=b=0 and a=b=c=0."""
    sides = [LEFT.split(text) for text in (gold, answer)]
    if min(map(len, sides)) < 2 or max(map(len, sides)) < 3 or SEVERAL.search(gold + answer):
        return False
    first, second = ({side.strip() for side in each if BARE.fullmatch(side.strip())} for each in sides)
    return first != second


def with_symbols(gold: str, answer: str) -> tuple[str, str]:
    """Both with a new letter for each derivative of an equation, and for each gcd and lcm of letters.

    math-verify makes 0 of a derivative and 1 of a gcd.
    """
    found: dict[str, str] = {}
    used = set((gold + answer).lower())
    free = [letter for letter in FREE if letter not in used]
    if "\0" in used:
        return gold, answer
    changed = [_symbolic(text, found) for text in (gold, answer)]
    if not found or len(found) > len(free):
        return gold, answer
    for letter, mark in zip(free, found.values(), strict=False):
        changed = [text.replace(mark, f" {letter} ") for text in changed]
    return changed[0].strip(), changed[1].strip()


def _symbolic(text: str, found: dict[str, str]) -> str:
    """``text`` with a mark for each thing that needs a symbol; ``found`` holds the mark of each."""

    def mark(key: str) -> str:
        return found.setdefault(key, f"\0{len(found)}\0")

    def divisor(match: re.Match[str]) -> str:
        of = sorted("".join(part.split()) for part in match[3].split(","))
        letters = re.search("[A-Za-z]", match[3])
        return mark(f"{match[1] or match[2]} {of}") if letters else match[0]

    text = DIVISOR.sub(divisor, text)
    return DERIVATIVE.sub(lambda match: mark("".join(match[0].split())), text) if LEFT.search(text) else text


def _terms(text: str) -> list[str]:
    text = text.strip()
    whole = re.fullmatch(r"\(([^()]*)\)", text)
    text = whole[1] if whole else text
    depth, cuts = 0, [-1]
    for bracket in BRACKET.finditer(text):
        if bracket[0] != ":":
            depth += 1 if bracket[0] in ("\\{", "(", "[", "{") else -1
        elif depth == 0:
            cuts.append(bracket.start())
    return [text[start + 1 : end].strip() for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _primes(text: str) -> dict[str, set[int]]:
    known: dict[str, set[int]] = {}
    for found in LETTER.finditer(text):
        if found[1]:
            known.setdefault(found[1], set()).add(len(found[2]))
    return known
