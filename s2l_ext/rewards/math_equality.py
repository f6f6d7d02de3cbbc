"""Whether an answer equals a gold: spellings made one, read whole by math-verify, compared part by part, guarded.

Runs in the child process (:mod:`math_child`), for it loads math-verify.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from s2l_ext.rewards import fast_math, math_verify_guards, spelling, text_guards
from s2l_ext.rewards.extraction import MINUS, boxes, last_group
from s2l_ext.rewards.hedges import affirmed, hedged

STEP_SECONDS, AGAIN_SECONDS = 3.0, 0.25
"""CPU seconds of one step, and between the signals after it: code that catches everything may swallow the first."""
PARTS = 12
"""Lists that are longer are left to math-verify."""
SPLIT = re.compile(
    r"\\text\s*\{\s*(?:,?\s*(?:and|or))\s*\}|,?(?<![A-Za-z])(?:and|or)(?![A-Za-z])|(?<=[\d)])or(?=[A-Z])"
    r"|,(?!\d{3}(?!\d))|;|\\q?quad"
)
GROUP = re.compile(
    r"(?:\(?([^()=]*)\)?\s*(?:=|\\in(?![A-Za-z])))?\s*(\\\{|\(|\[|\\langle(?![A-Za-z]))(.*)(?:\\\}|\)|\]|\\rangle)"
)
INDEX = re.compile(r"_\s*(?:\{[^{}]*\}|\w)")
PERCENT = re.compile(r"([^%]*?)\s*\\%")
CLOSE_BY = re.compile(r"[^\n]{0,9}|(?=[^\n]*(?:,|;|and|or))[^\n]{0,19}")
UNCLOSED = re.compile(r"^.*\\(?:boxed|fbox)\s*\{", re.DOTALL)
COMMAND = re.compile(r"\\[A-Za-z]+(?:\s*\{[A-Za-z ,.]*\})?")
PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
STATEMENT = re.compile(r"\banswer is\b:?", re.IGNORECASE)
END = re.compile(r"\.(?=\s|$)|\n|</s>|<\|")
OTHER_WORDS = re.compile(r"(?<![\\A-Za-z])(?!and\b|or\b)[A-Za-z]{2,}|^\(?[A-Z][).:]\s*\S|\d \d|!$|^-?$")
FORMULA = re.compile(r"[\\^_{}<>]")

NUMBER, EXPRESSION, SEVERAL, TEXT, IN_PART, UNREAD = "number", "expression", "several", "text", "in_part", "unread"


class OutOfTime(BaseException):
    """The CPU seconds are used up. Not an Exception: libraries that catch those let it pass."""


class Budget:
    """CPU seconds of this process for a question, given out in steps: a busy machine changes no verdict."""

    def __init__(self, seconds: float) -> None:
        self._until, self._step = time.process_time() + seconds, min(STEP_SECONDS, seconds)
        self.ran_out = False

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """A step that is left where it stands when its time is up; :attr:`ran_out` says so. In a main thread only."""
        left = min(self._step, self._until - time.process_time())
        before = signal.signal(signal.SIGPROF, _raise_out_of_time)
        try:
            signal.setitimer(signal.ITIMER_PROF, max(left, 0.001), AGAIN_SECONDS)
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.signal(signal.SIGPROF, before)
        except OutOfTime:
            self.ran_out = True


def _raise_out_of_time(*_: object) -> None:
    raise OutOfTime


@dataclass
class Comparison:
    """How two answers are compared: math-verify's options, and the CPU seconds that are left."""

    budget: Budget
    targets: tuple[str, ...]
    precision: int
    strict: bool
    relations: bool
    whole: bool = False
    read: dict[str, Any] = field(default_factory=dict)
    """Expressions by text, None where there is none: the parts of a list are compared with each other."""


def judge(
    text: str,
    gold: str,
    whole: bool,
    seconds: float = 20.0,
    precision: int = 6,
    strict: bool = True,
    allow_set_relation_comp: bool = False,
    match_types: list[str] | tuple[str, ...] = ("latex", "expr"),
) -> dict[str, Any]:
    """``correct``, what was ``extracted`` from ``text``, and ``timed_out``. Must run in a main thread.

    ``whole``: math-verify has to find the answer in ``text``. ``seconds`` are CPU seconds of this process, of which a
    single step has 3 at most. ``precision`` is the decimal places that must agree when one side is a decimal;
    ``strict`` asks for variables of the same names. With ``allow_set_relation_comp`` a relation may equal a set
    (``1 < x < 2`` and ``(1, 2)``). ``match_types`` is what is looked for: ``latex``, ``expr`` (plain numbers and
    arithmetic), or both.
    """
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    how = Comparison(Budget(seconds), tuple(match_types), precision, strict, allow_set_relation_comp, whole)
    truth = _gold(gold, how)
    text = affirmed(text.replace(MINUS, "-")) if whole else text
    stated = _stated(text, how) if whole else ""
    if stated:
        correct = _same(truth, stated, how)
        return {"correct": correct, "extracted": stated, "timed_out": how.budget.ran_out and not correct}
    found = _found(text, how) if whole else _answer(text)
    correct = bool(found) and _same(truth, found, how)
    short = whole and len(text) <= fast_math.SHORT_CHARS and "\n" not in text
    if not correct and short and (len(_parts(truth)) > 1 or not hedged(text)):
        correct = _same(truth, spelling.plain(text), how)
    if not correct and _is_prose(found):
        inside = _found(found, how)
        correct = bool(inside) and inside != found and _same(truth, inside, how)
    return {"correct": correct, "extracted": found, "timed_out": how.budget.ran_out and not correct}


def read(gold: str, seconds: float) -> dict[str, str]:
    """``kind`` of a gold (a constant of this module) and what is ``read`` of it."""
    how = Comparison(Budget(seconds), ("latex", "expr"), 6, True, False)
    text = _marked(gold)
    if _is_prose(text) or fast_math.DELIMITED.search(text):
        return {"kind": IN_PART if re.search(r"\d|\\|\$", text) else TEXT, "read": _found(text, how) or text}
    if len(_parts(text)) > 1:
        read_parts = [_expression(part, how) is not None for part in _parts(text)]
        return {"kind": SEVERAL if all(read_parts) else UNREAD, "read": text}
    expression = _expression(text, how)
    if expression is None:
        return {"kind": UNREAD if FORMULA.search(text) else TEXT, "read": text}
    if getattr(expression, "is_number", False):
        return {"kind": NUMBER, "read": text}
    return {"kind": TEXT if math_verify_guards.LETTERS.fullmatch(text) else EXPRESSION, "read": text}


def _marked(gold: str) -> str:
    """The answer of a gold: what is in its boxes, if it has some that stand close together, else all of it."""
    found = boxes(gold)
    if not found:
        return spelling.plain(UNCLOSED.sub("", gold))
    return _answer(gold[last_group(found, gold, CLOSE_BY)[0][0] : found[-1][2]])


def _gold(gold: str, how: Comparison) -> str:
    text = _marked(gold)
    if _is_prose(text) or fast_math.DELIMITED.search(text):
        return _found(text, how) if fast_math.ANCHORS.search(text) else text
    return text


def _answer(text: str) -> str:
    found = boxes(text)
    if found:
        text = ", ".join(text[inside : end - 1] for _, inside, end in found)
    return spelling.plain(text)


def _stated(text: str, how: Comparison) -> str:
    """What "The answer is x" says at the end of ``text``; empty where words or other values stand around it."""
    *before, said = STATEMENT.split(text)
    said, *rest = END.split(said, maxsplit=1)
    said = spelling.plain(re.sub("^(?:minus|negative) ", "-", said.strip("*_` ")))
    if not before or OTHER_WORDS.search(said) or re.search(r"[\d$\\]", "".join(rest)):
        return ""
    parts = _parts(said)
    return said if len(parts) <= PARTS and all(_expression(part, how) is not None for part in parts) else ""


def _is_prose(text: str) -> bool:
    words = PROSE.findall(COMMAND.sub(" ", spelling.MATH.sub(" ", text)))
    return len([word for word in words if word.lower() not in ("and", "or")]) >= 2


def _found(text: str, how: Comparison) -> str:
    """What math-verify finds in free text, as it stands there; empty when that is one of several candidates."""
    from math_verify import parse

    found: list[Any] = []
    with how.budget.step():
        found = parse(text, _targets(how.targets), parsing_timeout=None)
    if not found or (hedged(text) and len(_parts(str(found[-1]))) == 1):
        return ""
    said = spelling.plain(str(found[-1])).strip("*")
    unopened = len(re.findall(r"[)\]]", said)) > len(re.findall(r"[(\[]", said))
    return said[:-1] if said.endswith(")") and unopened else said


@lru_cache(maxsize=8)
def _targets(names: tuple[str, ...]) -> list[Any]:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    normal = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )  # units: a last letter is taken for one; ours are dropped by spelling
    known = {"latex": LatexExtractionConfig(normalization_config=normal), "expr": ExprExtractionConfig()}
    return [known[name] for name in names]


def _same(gold: str, answer: str, how: Comparison, deep: bool = True) -> bool:
    """Whether two answers in one spelling are equal."""
    if not gold or not answer:
        return False
    if fast_math.number(gold) is not None:
        answer = spelling.without_letter_unit(answer)
    if spelling.squeezed(gold) == spelling.squeezed(answer) or _same_words(gold, answer):
        return True
    (gold, half), (answer, other) = text_guards.clock(gold), text_guards.clock(answer)
    if half or other:
        return half in ("", other) and _same(gold, answer, how, deep=False)
    gold, answer = text_guards.with_symbols(gold, answer)
    if deep:
        verdict = _parts_match(gold, answer, how)
        if verdict is not None:
            return verdict
    if math_verify_guards.refused(gold, answer):
        return False
    products = text_guards.cross_products(gold, answer)
    if products:
        return all(_same(one, other, how, deep=False) for one, other in products)
    if how.precision == 6:
        quick = fast_math.verdict(answer, gold)
        if quick is not None:
            return quick[0]
    return _verified(gold, answer, how) or _same_otherwise(gold, answer, how)


def _same_words(gold: str, answer: str) -> bool:
    words = [found[1].lower() for text in (gold, answer) if (found := math_verify_guards.LETTERS.fullmatch(text))]
    return len(words) == 2 and len(words[0]) >= 4 and words[0] == words[1]


def _same_otherwise(gold: str, answer: str, how: Comparison) -> bool:
    """Equal but for a percent sign (28 and 28\\%), or but for the name of the quantity (11 and f(4)=11)."""
    for one, other in ((gold, answer), (answer, gold)):
        percent = PERCENT.fullmatch(one)
        if percent and not other.endswith("%"):
            return _same_with(percent[1], one is gold, other, how)
        named = math_verify_guards.side_of_name(one)
        if named and "=" not in other:
            return _same_with(named[1], one is gold, other, how)
    values = math_verify_guards.values_of_a_constant(gold, answer)
    return values is not None and _same(values[0], values[1], how, deep=False)


def _same_with(changed: str, is_gold: bool, other: str, how: Comparison) -> bool:
    gold, answer = (changed, other) if is_gold else (other, changed)
    return _same(gold, answer, how, deep=False)


def _verified(gold: str, answer: str, how: Comparison) -> bool:
    from math_verify import verify

    gold, answer = math_verify_guards.by_case(gold, answer)
    first, second = _expression(gold, how), _expression(answer, how)
    equal = False
    if first is not None and second is not None:
        with how.budget.step():
            second = math_verify_guards.same_symbols(first, second)
            if how.strict and math_verify_guards.clearly_apart(first, second, how.precision):
                return False
            equal = bool(verify([first], [second], how.precision, 15, how.strict, how.relations, timeout_seconds=None))
            equal = equal and not math_verify_guards.apart(first, second, 3 if how.whole else 2)
    return equal


def _expression(text: str, how: Comparison) -> Any | None:
    """The expression that the whole of ``text`` is, or None."""
    if text not in how.read:
        how.read[text] = _parsed(text, how)
    return how.read[text]


def _parsed(text: str, how: Comparison) -> Any | None:
    from math_verify import parse

    found: list[Any] = []
    if fast_math.DELIMITED.search(text) or _is_prose(text):
        return None
    latex = "latex" in how.targets
    with how.budget.step():
        given = f"\\boxed{{{text}}}" if latex else text
        found = parse(given, _targets(("latex",) if latex else how.targets), parsing_timeout=None)
    return next((item for item in found if not isinstance(item, str)), None)


def _parts_match(gold: str, answer: str, how: Comparison) -> bool | None:
    """Of two lists, whether each part has its partner; None where that is for math-verify to say."""
    golds, answers = _parts(gold), _parts(answer)
    names, others = (
        {named and named[0] for named in map(math_verify_guards.side_of_name, each)} for each in (golds, answers)
    )
    ordered, roots = len(names) > 1 and None not in names, {INDEX.sub("", str(name)) for name in names}
    group = GROUP.fullmatch(answer) if ordered and len(answers) == 1 else None
    if group and (len(roots) > 1 or group[2] != "\\{"):
        return _group_matches(golds, group, how)
    if not (1 < len(golds) == len(answers) <= PARTS):
        return None
    if ordered and len(roots) == 1 and others == roots:
        golds = [INDEX.sub("", part, count=1) for part in golds]  # x=1, x=3 are the roots x_1=1, x_2=3
    elif ordered and not any("=" in part for part in answers):
        return all(_same(one, other, how, deep=False) for one, other in zip(golds, answers, strict=True))
    left = list((Counter(answers) - Counter(golds)).elements())
    for part in (Counter(golds) - Counter(answers)).elements():
        partner = next((other for other in left if _same(part, other, how, deep=False)), None)
        if partner is None:
            return False if all(_apart(part, other, how) for other in answers) else None
        left.remove(partner)
    return True


def _group_matches(golds: list[str], group: re.Match[str], how: Comparison) -> bool:
    """Whether a tuple holds the values of x=3, y=4: in the order of its own names, else in the gold's."""
    names, values = _parts(group[1] or ""), _parts(group[3])
    if len(values) != len(golds) or (group[2] == "\\{" and "=" not in group[3]):
        return False
    if "=" in group[3]:
        return all(any(_same(gold, value, how, deep=False) for value in values) for gold in golds)
    if len(names) == len(values):
        return _parts_match(", ".join(golds), ", ".join(map("=".join, zip(names, values, strict=True))), how) is True
    return all(_same(gold, value, how, deep=False) for gold, value in zip(golds, values, strict=True))


def _apart(gold: str, answer: str, how: Comparison) -> bool:
    """Whether two parts are certainly different, so that their lists are as well."""
    gold, answer = math_verify_guards.by_case(gold, answer)
    first, second = _expression(gold, how), _expression(answer, how)
    if first is None or second is None or not how.strict:
        return False
    apart = False
    with how.budget.step():
        second = math_verify_guards.same_symbols(first, second)
        apart = math_verify_guards.clearly_apart(first, second, how.precision)
    return apart


def _parts(text: str) -> list[str]:
    """The parts of a list, at commas and the like outside brackets; ``\\pm`` makes two of a part."""
    depth, depths = 0, {}
    for bracket in math_verify_guards.BRACKET.finditer(text):
        depth += 1 if bracket[0] in ("\\{", "(", "[", "{") else -1
        depths[bracket.start()] = depth
    cuts = [0]
    for found in SPLIT.finditer(text):
        before = [position for position in depths if position < found.start()]
        if not before or depths[before[-1]] == 0:
            cuts += [found.start(), found.end()]
    pieces = [text[start:end].strip() for start, end in zip(cuts[::2], [*cuts[1::2], len(text)], strict=True)]
    return [sign for piece in pieces if piece for sign in _signs(piece)]


def _signs(text: str) -> list[str]:
    if "\\pm" not in text and "\\mp" not in text:
        return [text]
    return [
        re.sub(r"\\pm(?![A-Za-z])", first, re.sub(r"\\mp(?![A-Za-z])", second, text)) for first, second in ("+-", "-+")
    ]
