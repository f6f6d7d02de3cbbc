r"""One spelling for what models write in many: plain text, Unicode and units become the LaTeX that math-verify reads.

Golds and answers go through :func:`plain` alike. It drops units that are words, never a symbol: the ``h`` of
``\pi r^2 h`` stays.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from s2l_ext.rewards.extraction import without_emphasis

GREEK = {unicodedata.lookup(f"GREEK SMALL LETTER {name.upper()}"): name for name in (
    "alpha", "beta", "gamma", "delta", "theta", "mu", "pi", "rho", "sigma", "tau", "phi", "omega",
)}  # fmt: skip
SYMBOLS = {
    **{letter: f"\\{name} " for letter, name in GREEK.items()},
    **dict.fromkeys("\u2212\u2010\u2011\u2013", "-"),
    **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "∗": "*",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\neq ", "≈": r"\approx ", "±": r"\pm ", "∞": r"\infty ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "º": r"^\circ ",
    "\uff0c": ",", "\uff1b": ";", "\uff08": "(", "\uff09": ")", "、": ",", "。": ".", "…": r"\ldots ", "′": "'",
}  # fmt: skip
SYMBOL = str.maketrans(SYMBOLS)
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
RAISED_RUN, LOWERED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")
VULGAR = re.compile("[¼-¾⅐-⅞]")

MATH = re.compile(r"(?<!\\)\$\$?([^$]*)(?<!\\)\$\$?|\\\((.*?)\\\)|\\\[(.*?)\\\]", re.DOTALL)
SEPARATOR = re.compile(r"(?:\s|[,;.]|\band\b|\bor\b|\\quad|-?[0-9]+(?:\.[0-9]+)?)*")
NAMED_UNIT = re.compile(r"\s*[A-Za-z]+(?:\s+[A-Za-z]+){0,2}(?:\^\{?[23]\}?|[²³])?[.]?\s*")
UNIT_POWER = re.compile(r"(?<=[a-z])\$(\^\{?[23]\}?)\$")
DOUBLED = re.compile(r"\\(?=\\[A-Za-z]{2})")
EDGE = re.compile(r"(?:(?<!\\)\\(?=\s*$)|(?<!\\)\\\\|\\[,;!](?=\s*$)|(?<!\.)[.](?=\s*$)|[,;:\s])+$")
GAP = r"(?:\{,\}|,?\\[,;:!>]\s*|\\ |~|[\u00a0\u2009\u202f])"
THOUSANDS = re.compile(rf"(?<![\d.])\d{{1,3}}(?:{GAP}\d{{3}})+(?!\d)")
SCIENTIFIC = re.compile(r"([-+]?)(\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})[eE]([-+]?\d{1,4})")
WRITTEN_OUT = 40
"""Powers of ten up to this are written out."""
STYLED_NUMBER = re.compile(r"\\(?:text|math)(?:bf|rm|it|sf|tt|normal)?\s*\{\s*(-?\(?)(-?[0-9][0-9.,/]*)(\)?)\s*\}")
UPRIGHT = re.compile(r"\\(?:mathrm|textrm|text|operatorname|rm)\s*\{\s*([ie])\s*\}|\{\\rm\s+([ie])\s*\}")
ROOT = re.compile(r"√\s*(?:\{|(\d+|[A-Za-z])|(?=\())")
NAMES = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp"
FUNCTION = re.compile(rf"(?<![A-Za-z\\])({NAMES})(?=\s*\()")
PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])")
SQRT = re.compile(r"(?:(?<![A-Za-z\\])sqrt|\\sqrt)\s*\(")
POWER = re.compile(r"\s*(?<!\*)\*\*(?!\*)\s*(?:(-?\d+|[A-Za-z])(?![\w.])|\((-?[\w/]+)\)|(?=\{))")
MIXED = re.compile(r"(-?\d{1,6}) (\d{1,4})/(\d{1,4})")
FRACTION = re.compile(
    r"\\frac\s*(\\(?!sqrt|frac|text|math)[A-Za-z]+)\s*(\d|[A-Za-z](?![A-Za-z])|\\(?!sqrt|frac)[A-Za-z]+)"
)
RECURRING = re.compile(
    r"(?<![\w.,])(\d{0,20})\.(\d{0,20})"
    r"(?:\\(?:overline|bar)\s*(?:\{\s*(\d{1,20})\s*\}|(\d))|\\dot\s*\{?(\d)\}?(?:(\d{0,18})\\dot\s*\{?(\d)\}?)?)(?![\d.])"
)
REWRITES = tuple((re.compile(pattern), replacement) for pattern, replacement in (
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:left|right)(?=\s*(?:[()\[\]|.<>/]|\\[{}|lr]))\s*|\\[bB]igg?[lrm]?(?=\s*(?:[()\[\]|]|\\[{}|lr]))\s*", ""),
    (r"\\(?:displaystyle|textstyle|limits|nolimits)(?![A-Za-z])\s*", ""),
    (r"\\(?:varnothing|\{\s*\\\}|\{\})(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"\\(?:leqslant|leqq|leq)(?![A-Za-z])", r"\\le"),
    (r"\\(?:geqslant|geqq|geq)(?![A-Za-z])", r"\\ge"),
    (r"\\(?:ne(?![A-Za-z])|not\s*=)", r"\\neq "),
    (r"\\lt(?![A-Za-z])", "<"), (r"\\gt(?![A-Za-z])", ">"),
    (r"\\lbrace(?![A-Za-z])", r"\\{"), (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\imath(?![A-Za-z])", "i"),
    (r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|mm|cm|em|ex|in)\s*\]|\\cr(?![A-Za-z])", r"\\\\ "),
    (r"^(\\\{\s*\(?[A-Za-z][^|:]{0,40}?)\s*(?:\\mid(?![A-Za-z])|:)", r"\1|"),
    (r"^\\approx\s*(?=-?\d*\.\d)", ""),
    (r"\^\s*\{\s*\\prime\s*\\prime\s*\}", "''"), (r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![A-Za-z]))", "'"),
    (r"\s*\\?%|\s*\b(?:percent|per cent)\b", r"\\%"),
    (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])", r"^\\circ "),
    (r"\\circ\s+\\?(?:text|mathrm)?\{?\s*[CF]\s*\}?\s*$", r"\\circ "),
    (r"(?<!\\)\\[,;:!>]|(?<!\\)\\ |~", " "),
    (r"(?<=[\s\w)])\s!=\s*", r"\\neq "),
    (r"^\{([^{}]*)\}$", r"\1"),
    (r"^(-?)\s*(?:\\?\$|US\s*\\?\$|€|£|¥|₹|\\(?:euro|pounds)(?![A-Za-z])\s*)\s*(?=[\d.])", r"\1"),
))  # fmt: skip
COMMANDS = r"\\(?:text[a-z]*|mbox|mathrm|mathit|operatorname)"
WORDED = rf"(?:\\rm\s+[A-Za-z]+|{COMMANDS}\s*\{{[^{{}}]*\}})(?:\s*\^\s*\{{?\s*-?\d\s*\}}?)?"
CLOCK = re.compile(
    r"\$?\s*(\d{1,2}(?::\d\d){0,2})\s*\$?\s*(?:\\(?:text[a-z]*|mbox|mathrm)\s*\{\s*)?([AaPp])\.?\s*[Mm]\.?\s*\}?\s*\$?\.?"
)
GROUP = re.compile(r"[({]([^(){}]*)[)}\s]+$")
TEXT_UNIT = re.compile(rf"(?<=[^\s\\])\s*(?:{WORDED}\s*(?:(?:\\cdot|\\times|/)\s*(?={COMMANDS}))?)+$")
UNITS_TEXT = """
    cm mm km kg mg ml ft mi yd hr hrs oz lb lbs mph kmph kmh nm kj kw mw kpa pa hz mol day men way sec min
    rad deg cc dm gm amp ohm sq cu km/h m/s cm2 m2 usd eur rs inch bps
    cup egg box car dog cat bag kid boy man hat pen cow pig hen toy pie
"""
UNITS = frozenset(UNITS_TEXT.split())
MEASURES_TEXT = """
    meter metre centimeter centimetre millimeter kilometer kilometre inch inche foot feet yard mile gram kilogram liter
    litre ounce pound ton second minute hour day week month year dollar cent euro degree radian unit square cubic per
    joule newton watt volt ohm pascal mole percent
"""
MEASURES = frozenset(MEASURES_TEXT.split()) | UNITS | frozenset("hsmgLNJVWAK")
"""Words that are units behind a variable too, as plurals are; behind a number every word is one."""
PLURAL = re.compile(r"[a-z]{2,}[a-hj-rtv-z]s")
LETTER_UNITS = frozenset("mgL")
THOUSAND = re.compile(r"\{\s*k\s*\}")
UNIT_OF_NUMBER = re.compile(r"(-?(?:[\d.,]+|\\frac\{\d+\}\{\d+\}))\s+(?:[hsmgLNJVWAK]|m\s*\^\s*\{?[23]\}?)")
TAIL_WORDS = re.compile(
    r"(?:(?<=[\d})])|(?<=\\pi)(?=\s+(?:[ckm]m|ft|[a-z]{4,})\b))"
    r"\s*((?:(?:^|\s+)[A-Za-z][A-Za-z/]*\.?)+|[A-Za-z/]{2,4})\s*(?:\^\s*\{?[23]\}?)?$"
)
QUALIFIERS_TEXT = """
    or and not no nor but to than of mod at least most more less fewer greater over under below above about
    around approximately nearly almost up down between from plus minus times if for when where with without
    only is are maybe perhaps possibly hundred thousand million billion trillion dozen score half third
    quarter fifth percent squared cubed factorial choose base none negative positive
    infinity sqrt root pi inf by unknown error wrong false true never cannot isn wasn doesn unlikely
    incorrect except halves thirds fourths fifths sixths sevenths eighths ninths
    tenths hundredths thousandths millionths hundreds thousands millions billions trillions dozens
"""
PROPERTIES = frozenset(("even", "odd", "prime", "composite", "rational", "irrational"))
"""These change what stands before them where they end the text: 5 prime numbers are 5."""
QUALIFIERS = frozenset(QUALIFIERS_TEXT.split())
"""Words that change what a number says; text with one of them is no unit."""
BLANKS = re.compile(r"\s{3,}")
"""Long runs of blanks make the patterns below slow."""
WORD, UNIT_WORD = re.compile(r"[A-Za-z]+"), re.compile(r"[A-Za-z/]+")


def plain(text: str) -> str:
    """``text`` in the one spelling. It never raises; a text that cannot be rewritten comes back as it is."""
    clock = CLOCK.fullmatch(text.strip()) if len(text) < 60 else None
    if clock:
        return f"{clock[1]}\\text{{ {clock[2].lower()}m}}"
    text = undelimited(without_emphasis(BLANKS.sub(" ", text.strip())).strip())
    if not text.isascii():
        text = _ascii(text)
    if "\\begin" not in text:
        text = DOUBLED.sub("", text)
    text = THOUSANDS.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = RECURRING.sub(_recurring, text)
    text = UPRIGHT.sub(lambda found: f" {found[1] or found[2]} ", STYLED_NUMBER.sub(_styled, text))
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    text = _worded(_trimmed(text))
    return _without_units(_trimmed(text)).strip()


def undelimited(text: str) -> str:
    r"""Without ``$`` and its like, where nothing but separators and plain numbers stands between the formulas."""
    if "$" not in text and "\\(" not in text and "\\[" not in text:
        return text
    text, between, last = UNIT_POWER.sub(r"\1", text), [], 0
    for found in MATH.finditer(text):
        between.append(text[last : found.start()])
        last = found.end()
    between.append(text[last:])
    unit = NAMED_UNIT.fullmatch(between[-1]) if not qualified(between[-1]) else None
    if len(between) == 1 or not all(SEPARATOR.fullmatch(each) for each in (between[:-1] if unit else between)):
        return text
    return MATH.sub(lambda found: next(group for group in found.groups() if group is not None).strip(), text).strip()


def squeezed(text: str) -> str:
    """For comparing texts: no blank but between digits."""
    return re.sub(r"\s+(?!\d)|(?<!\d)\s+", "", text)


def qualified(text: str) -> bool:
    """Whether a word in ``text`` changes what a number beside it says: "at least", "or", "not", "million"."""
    words = [word.lower() for word in WORD.findall(text)]
    return not QUALIFIERS.isdisjoint(words) or not PROPERTIES.isdisjoint(words[-1:])


def without_letter_unit(text: str) -> str:
    """``8`` for ``8 h``: for a gold that is a plain number, so that the letter can be no variable of the question."""
    found = UNIT_OF_NUMBER.fullmatch(text)
    return found[1] if found else text


def _ascii(text: str) -> str:
    text = THOUSANDS.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = RAISED_RUN.sub(lambda found: f"^{{{found[0].translate(RAISED)}}}", text)
    text = LOWERED_RUN.sub(lambda found: f"_{{{found[0].translate(LOWERED)}}}", text)
    text = VULGAR.sub(_vulgar, text)
    text = _closed(ROOT, text, r"\sqrt{")
    return text.translate(SYMBOL)


def _vulgar(found: re.Match[str]) -> str:
    parts = unicodedata.normalize("NFKC", found[0]).split("\u2044")
    return f"\\frac{{{parts[0]}}}{{{parts[1]}}}" if len(parts) == 2 and all(parts) else found[0]


def _closed(pattern: re.Pattern[str], text: str, opening: str) -> str:
    """Replace a root's sign; what follows in parentheses, or as one token, goes into braces."""
    for _ in range(text.count("√") + text.count("sqrt")):
        found = pattern.search(text)
        if found is None:
            break
        token = found[1] if found.groups() else None
        if token is not None:
            text = f"{text[: found.start()]}{opening}{token}}}{text[found.end() :]}"
            continue
        begin = found.end() if found[0].endswith(("{", "(")) else found.end() + 1
        end = _end(text, begin)
        if end is None:
            break
        text = f"{text[: found.start()]}{opening}{text[begin : end - 1]}}}{text[end:]}"
    return text


def _end(text: str, start: int) -> int | None:
    depth = 1
    for index in range(start, len(text)):
        depth += (text[index] in "({") - (text[index] in ")}")
        if depth == 0:
            return index + 1
    return None


def _recurring(found: re.Match[str]) -> str:
    r"""``\frac{1}{6}`` for ``0.1\overline{6}``, ``0.1\bar 6`` and ``0.1\dot{6}``."""
    whole, places, *repeated = (group or "" for group in found.groups())
    again = "".join(repeated)
    top = int(whole + places + again) - int(whole + places or "0")
    value = Fraction(top, 10 ** len(places) * (10 ** len(again) - 1))
    return str(value) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _styled(found: re.Match[str]) -> str:
    return found[2] if bool(found[1].strip("-")) == bool(found[3]) else found[0]


def _trimmed(text: str) -> str:
    text = text.strip()
    if text.endswith(("..", "dots")):
        return text
    return re.sub(r"[.]\s*\}$", "}", EDGE.sub("", text)) if "\\text" in text else EDGE.sub("", text)


def _worded(text: str) -> str:
    scientific = SCIENTIFIC.fullmatch(text)
    if scientific:
        return _written_out(*scientific.groups())
    mixed = MIXED.fullmatch(text)
    if mixed:
        return f"{mixed[1]}\\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    if "\\text" not in text and "\\mathrm" not in text and "\\operatorname" not in text:
        text = PI.sub(r"\\pi ", FUNCTION.sub(r"\\\1 ", _closed(SQRT, text, r"\sqrt{")))
    text = POWER.sub(lambda found: f"^{{{found[1] or found[2]}}}" if found[1] or found[2] else "^", text)
    return FRACTION.sub(r"\\frac{\1}{\2}", text)


def _written_out(sign: str, digits: str, power: str) -> str:
    exponent, sign = int(power), "-" if sign == "-" else ""
    if abs(exponent) > WRITTEN_OUT:
        return f"{sign}{digits}\\times 10^{{{exponent}}}"
    whole, _, places = digits.partition(".")
    moved = len(whole) + exponent
    number = whole + places
    number = "0" * max(0, 1 - moved) + number.ljust(moved, "0")
    moved = max(moved, 1)
    places = number[moved:].rstrip("0")
    return sign + (number[:moved].lstrip("0") or "0") + (f".{places}" if places else "")


def _without_units(text: str) -> str:
    found = TEXT_UNIT.search(text)
    before = text[: found.start()].strip() if found else ""
    if found and not THOUSAND.search(found[0]) and _takes_unit(before, found[0]):
        return before
    whole = re.fullmatch(r"\\(?:text|mathrm|textbf|mbox)\s*\{\s*(-?[\d.,/]+)\s+([A-Za-z][A-Za-z .]*)\}", text)
    if whole and not qualified(whole[2]):
        return whole[1]
    tail = TAIL_WORDS.search(text)
    before = text[: tail.start()].strip() if tail else ""
    if tail and _takes_unit(before, tail[1]) and all(_is_unit(word, text) for word in UNIT_WORD.findall(tail[1])):
        return before
    return text


def _takes_unit(before: str, unit: str) -> bool:
    """Whether ``before`` is something that ``unit`` measures: a number, or a formula where the unit is well known."""
    if qualified(unit) or not re.search(r"[\w})]$|\\%$", before):
        return False
    words = WORD.findall(re.sub(COMMANDS, "", unit.replace("\\rm", "")))
    return _ends_in_number(before) or all(word in MEASURES or PLURAL.fullmatch(word) for word in words)


def _ends_in_number(text: str) -> bool:
    group = GROUP.search(text)
    if group:
        return not WORD.search(re.sub(r"\\[A-Za-z]+", "", group[1]))
    return bool(re.search(r"\d$|\\%$|\\[A-Za-z]+$", text))


def _is_unit(word: str, text: str) -> bool:
    low = word.lower()
    if low in UNITS or (word[1:].islower() and (low in MEASURES or PLURAL.fullmatch(low))):
        return True
    if len(word) >= 4:
        return word.islower() and bool(re.search("[aeiouy]", word))
    return word in LETTER_UNITS and bool(re.fullmatch(r"-?[\d.,]+\s+[mgL]", text))
