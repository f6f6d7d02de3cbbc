r"""Where math-verify 0.9.0 says "equal" and is wrong. Every guard only ever takes a "right" away.

:func:`by_case` and :func:`same_symbols` correct what it reads; :func:`clearly_apart` only saves it work.
Issues are those of huggingface/Math-Verify. Answers reach the guards in the spelling of :mod:`spelling`.
"""

from __future__ import annotations

import cmath
import re
from typing import Any

from s2l_ext.rewards import fast_math, text_guards

SIGN = re.compile(r"(<=?|>=?|\\(?:le|ge|neq?|ll|gg|nless|ngtr|sim|equiv|in|notin|subset|subseteq)(?![A-Za-z]))?")
BASED = re.compile(r"(-?[0-9A-Fa-f.]+)\s*_\s*\{?\s*(?:\\text\s*\{)?\s*([0-9]+|[a-z]+)\s*\}?\}?")
TEN = ("10", "ten")
SPACED_DIGITS = re.compile(r"(?<!frac)(?<!frac )(?<!log_)\d\s+\d")
BRACKET = re.compile(r"\\[{}]|[()\[\]{}]")
MARK = re.compile(r"\\[{}]|[()\[\]{},]|\\[lr]angle(?![A-Za-z])")
CLOSING = {"\\}": "set", ")": "tuple", "]": "tuple", "\\rangle": "tuple"}
LETTERS = re.compile(
    r"(?:\\(?:text|mathrm|textbf|mathbf|textit|mbox)\s*\{)?\s*([A-Za-z]+(?:[ -][A-Za-z]+)*"
    r"(?:(?<=[A-Za-z]{3}) \d+(?:, \d+)?)?)\s*\}?"
)
UNREAD = re.compile(
    r"\\(?:lor|land|vee|wedge|to|mapsto|rightarrow|Rightarrow|implies|iff|neq?|not|mid|nmid)(?![A-Za-z])"
)
LIMIT = re.compile(r"\s*\\lim\s*_\s*\{[^{}=]*\}(?=[^=]*=[^=]*$)")
UNEVALUATED = re.compile(r"\\(?:sum|prod|i{0,3}int|oint|lim|bigcup|bigcap|[bp]?mod)(?![A-Za-z])")
PRIME = re.compile(r"(?<=[\w)\]}])\s*'(?![A-Za-z])")
PRIMED = re.compile(r"[A-Za-z]\s*(?:'|\^\s*\{?\s*\\prime\s*\}?)+")
CALL = re.compile(r"([A-Za-z])\s*\(([a-z])\)")
CHOICE = re.compile(r"[A-Z]")
LETTER = re.compile(r"\\[A-Za-z]+(?:\s*\{[A-Za-z ]*\})?|([A-Za-z])")
KEPT = frozenset("deijlo")
"""Letters with a meaning of their own, which stand for no other letter."""
NAME = re.compile(
    r"\s*(?:\\(?:angle|overline|vec|operatorname|mathrm|text|widehat|hat|bar|triangle)\s*)?"
    r"(?:\{[^{}]*\}|\\?[A-Za-z]+'*|[A-Za-z]\^\{?-1\}?(?=\())\s*(?:_\s*(?:\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\w))?'*\s*"
    r"(?:\([^()=]{0,60}\))?\s*|\s*(\||\\[lr]?vert|\\\|)[^=|]{1,40}(?:\||\\[lr]?vert|\\\|)\s*"
)
FRACTION = re.compile(r"\s*\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}\s*")
COORDINATES = frozenset("xyz")
PRODUCT = re.compile(r"[a-z]{2,4}")
FUNCTION_OF = re.compile(r"\s*\\(?:sin|cos|tan|cot|sec|csc|log|ln|max|min|lim|det|arg|Re|Im|dim)\b.*")
TINY, LEAST_AGREEMENT, EXACT_AGREEMENT = 2e-4, 5e-3, 1e-9
DIGITS = 30
AGREEMENT = 1e-6
"""Values that differ by less than this part of the larger count as equal."""


def refused(gold: str, answer: str) -> bool:
    """Whether the two texts, which differ, cannot mean the same whatever math-verify makes of them."""
    return (
        _sign(gold) != _sign(answer)  # drops a sign at the front: "\ge 14" is 14
        or _other_base(gold, answer)  # drops the base: 2101_4 is 2101_3, and 5_6 is 5
        or _other_brackets(gold, answer)  # \{3,4\} is (3,4)
        or _other_letters(gold, answer)  # multiplies letters: EBAC is ABCE
        or bool(SPACED_DIGITS.search(gold) or SPACED_DIGITS.search(answer))  # adds: "3 4" is 7
        # takes the last of "3 \lor 4"
        or bool(UNREAD.search(gold)) != bool(UNREAD.search(LIMIT.sub("", answer, count=1)))
        or bool(PRIMED.fullmatch(gold) or PRIMED.fullmatch(answer))  # drops a prime: B' is B
        or _equation_for_its_right_side(gold, answer)  # x+y+z=0 takes 0
        or _letters_set_equal(gold, answer)  # "A=B" is B
        or _more_primes(gold, answer)  # drops it: 5' is 5
        or text_guards.other_primes(gold, answer)  # f'(2) is f(2)
        or text_guards.other_chain(gold, answer)  # takes the last of x=y=1
        or text_guards.unlike_ratios(gold, answer)  # divides: 3:4:5 is 0.15
        or bool(UNEVALUATED.search(_behind_equals(answer)) and not UNEVALUATED.search(gold))  # 5 \mod 6 is 5
    )


def apart(gold: Any, answer: Any, least_sides: int) -> bool:
    """Whether two expressions that math-verify calls equal are not: false chains (an equation of at least
    ``least_sides`` unequal numbers), and tiny numbers (issue 14).
    """
    if _false_chain(answer, least_sides):
        return True
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return False
    return _tiny_and_apart(_last_side(gold), _last_side(answer))


def same_symbols(first: Any, second: Any) -> Any:
    """``second`` with the symbols of ``first``: they are real, or not, as the letter i stood alone or in ``4i``."""
    known = {symbol.name: symbol for symbol in getattr(first, "free_symbols", ())}
    other = {each: known[each.name] for each in getattr(second, "free_symbols", ()) if each.name in known}
    return second.xreplace(other) if any(one is not two for one, two in other.items()) else second


def clearly_apart(first: Any, second: Any, precision: int) -> bool:
    """Whether two expressions have other values at a point, so that their difference need not be simplified.

    Of equations ``x = ...`` with the same symbol before the sign the right sides are compared.
    """
    from sympy import Eq, Expr, Integral, Limit, Product, Sum, UnevaluatedExpr

    both = (first, second)
    if all(isinstance(each, Eq) and each.lhs.is_Symbol and not each.rhs.has(each.lhs) for each in both):
        return first.lhs != second.lhs or clearly_apart(first.rhs, second.rhs, precision)
    if not all(isinstance(each, Expr) and not each.is_Symbol for each in both):
        return False
    if any(each.has(UnevaluatedExpr, Integral, Limit, Product, Sum) for each in both):
        return False
    values = _at_a_point(both)
    if values is None:
        return False
    return abs(values[0] - values[1]) > max(2 * 10.0**-precision, AGREEMENT * max(map(abs, values)))


def _at_a_point(expressions: tuple[Any, ...]) -> list[complex] | None:
    from sympy import Rational

    names = sorted(set().union(*(each.free_symbols for each in expressions)), key=str)
    point = {name: Rational(1009 + 311 * index, 787) for index, name in enumerate(names)}
    try:
        values = [complex(each.evalf(DIGITS, subs=point)) for each in expressions]
    except Exception:
        return None
    return values if all(map(cmath.isfinite, values)) else None


def side_of_name(text: str) -> tuple[str, str] | None:
    r"""``("f(4)", "11")`` for ``f(4)=11``: what is before and after the only ``=``, if the first names a quantity."""
    sides = re.split(r"(?<![<>!\\:])=(?!=)", text)
    if len(sides) != 2 or not sides[1].strip() or not names_quantity(sides[0]):
        return None
    return sides[0].strip(), sides[1].strip()


def values_of_a_constant(gold: str, answer: str) -> tuple[str, str] | None:
    """The right sides of W(n)=1 and W(x)=-1: one function, constant on both sides, of variables with other names."""
    named = [(side, CALL.fullmatch(side[0])) for text in (gold, answer) if (side := side_of_name(text))]
    if len(named) != 2 or not all(call and call[2] not in side[1] for side, call in named):
        return None
    (first, one), (second, other) = named
    return (first[1], second[1]) if one and other and one[1] == other[1] else None


def names_quantity(text: str) -> bool:
    """Whether ``text`` is a name (``x``, ``f(4)``, ``AB``, ``\\frac{a}{b}``), not one side of an equation."""
    fraction = FRACTION.fullmatch(text)
    names = list(fraction.groups()) if fraction else re.split("[:/]", text)
    if len(names) > 1:
        return all(NAME.fullmatch(name) and not COORDINATES & set(name) for name in names)
    if FUNCTION_OF.fullmatch(text):
        return not re.search(r"[+*]|(?<!^)-", text)
    return bool(NAME.fullmatch(text)) and not PRODUCT.fullmatch(text.strip())


def _behind_equals(text: str) -> str:
    right = text_guards.LEFT.split(text)[-1]
    return right if right.count("{") == right.count("}") else text


def _sign(text: str) -> str:
    found = SIGN.match(text.strip())
    return (found and found[1]) or ""


def _other_base(gold: str, answer: str) -> bool:
    first, second = BASED.fullmatch(gold.strip()), BASED.fullmatch(answer.strip())
    if first and second:
        return first.groups() != second.groups()
    based, other = (first, answer) if first else (second, gold)
    if based and fast_math.number(other) is not None:
        return based[2] not in TEN
    parts = [BASED.fullmatch(part.strip()) for part in re.split("[,;]", answer)]
    return first is not None and any(part and part.groups() != first.groups() for part in parts)


def _more_primes(gold: str, answer: str) -> bool:
    first, second = (len(PRIME.findall(text.rpartition("=")[2])) for text in (gold, answer))
    return second > first and not answer.strip().startswith("'")


def _other_brackets(gold: str, answer: str) -> bool:
    first, second = _brackets(gold), _brackets(answer)
    return bool(first and second) and first.isdisjoint(second)


def _brackets(text: str) -> set[str]:
    """Whether the innermost lists with commas are sets or tuples: those of (1,2),(3,4) are tuples, in a set too."""
    kinds: set[str] = set()
    levels = [[False, False]]  # a comma, a list inside
    for mark in MARK.finditer(text):
        if mark[0] == ",":
            levels[-1][0] = True
        elif mark[0] in ("\\{", "(", "[", "{", "\\langle"):
            levels.append([False, False])
        elif len(levels) > 1:
            comma, inside = levels.pop()
            levels[-1][1] |= comma or inside
            kind = CLOSING.get(mark[0])
            if kind and (comma != inside) and (comma or kind == "set"):
                kinds = {kind} if inside else kinds | {kind}
    return kinds


def _other_letters(gold: str, answer: str) -> bool:
    words = [found[1] for text in (gold, answer) if (found := LETTERS.fullmatch(text.strip()))]
    if len(words) != 2 or len(words[0]) < 3 or all(PRODUCT.fullmatch(word) for word in words):
        return False
    return words[0].lower().split() != words[1].lower().split()


def _equation_for_its_right_side(gold: str, answer: str) -> bool:
    if "=" not in gold or "=" in answer or re.search(r"[,;]|\\text|\band\b", gold):
        return False
    return side_of_name(gold) is None and len(re.split(r"(?<![<>!\\:])=", gold)) == 2


def by_case(gold: str, answer: str) -> tuple[str, str]:
    """Both with other letters for capitals that also stand there small: math-verify reads ``R`` as ``r``."""
    letters = {found[1] for text in (gold, answer) for found in LETTER.finditer(text) if found[1]}
    capitals = sorted(letter for letter in letters if letter.isupper() and letter.lower() in letters)
    free = [letter for letter in "abcfghkmnpqrstuvwxyz" if letter not in letters and letter.upper() not in letters]
    if not capitals or len(capitals) > len(free) or not KEPT.isdisjoint(letter.lower() for letter in capitals):
        return gold, answer
    other = dict(zip(capitals, free, strict=False))
    renamed = [LETTER.sub(lambda found: other.get(found[1] or "", found[0]), text) for text in (gold, answer)]
    return renamed[0], renamed[1]


def _letters_set_equal(gold: str, answer: str) -> bool:
    sides = answer.split("=")
    return len(sides) > 1 and bool(CHOICE.fullmatch(gold)) and all(CHOICE.fullmatch(side.strip()) for side in sides)


def _false_chain(expression: Any, least_sides: int) -> bool:
    """1=2=3: a chain of numbers that are not equal."""
    from sympy import Eq

    equations = getattr(expression, "_unsorted_args", None) or (expression,)
    sides = [side for equation in equations if isinstance(equation, Eq) for side in equation.args]
    if len(sides) < least_sides or not all(getattr(side, "is_number", False) for side in sides):
        return False
    values = [complex(side.evalf()) for side in sides]
    return any(abs(value - values[0]) > 1e-6 for value in values)


def _last_side(expression: Any) -> Any:
    from sympy import Eq

    return expression.rhs if isinstance(expression, Eq) else expression


def _tiny_and_apart(first: Any, second: Any) -> bool:
    """Six decimals say nothing of numbers near 0; there, three digits must agree, or nine where both are exact."""
    from sympy import Abs, Float

    sizes = [Abs(each).evalf(DIGITS) for each in (first, second)]
    if not all(size.is_comparable for size in sizes) or max(sizes) >= TINY or first == second:
        return False
    if any(each.is_zero for each in (first, second)):
        return not all(each.is_zero for each in (first, second))
    allowed = LEAST_AGREEMENT if first.has(Float) or second.has(Float) else EXACT_AGREEMENT
    return bool(Abs(first / second - 1).evalf(DIGITS) > allowed)
