"""What one value of a row may be: a text as a person reads it, or an answer as exact text. Nothing is guessed at."""

from __future__ import annotations

import ast
import re
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from s2l_ext.errors import DataError

PYTHON_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+")
LARGEST_EXPONENT = 400
"""Of ten; a double ends at 308, and a hostile one would be written in more digits than memory holds."""
LETTERS = {"\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r"}
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
UNESCAPED = re.compile(
    r"[\a\b\v\f](?=[A-Za-z])"
    r"|\t(?=ext(?:bf|it|rm|tt|sf)?\s*\{|imes(?![a-z])|heta(?![a-z])|frac(?=[{\d\\])|binom(?=[{\d\\])|riangle(?![a-z])"
    r"|ilde(?=[{\\])|an(?=[\\({^]|h?[\\({^])|au(?=[_^\\){}$=,+-])|o(?= ?[-+]?(?:\d|\\)))"
    r"|\r(?=ight(?:arrow)?(?![a-z])|angle(?![a-z])|floor(?![a-z])|ceil(?![a-z])|ho(?![a-z]))"
    r"|\n(?=abla(?![a-z])|eq(?= ?(?:\d|\\|[a-z]\b))|otin(?![a-z]))"
)
"""A control character that a command of LaTeX with one backslash became; tabs and line ends only before such a rest."""
SHOWN_CHARS = 60


def shown(value: Any) -> str:
    """The value as Python writes it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 3]}..."


# ---- text ---------------------------------------------------------------------------------------------------------


def text_fault(text: str, latex_only: bool = False) -> str | None:
    """What is wrong with the characters of a text, and the fix; None if nothing. ``latex_only`` looks for LaTeX whose
    backslashes were lost, not for other control characters.
    """
    latex = UNESCAPED.search(text)
    found = latex or (None if latex_only else CONTROL.search(text))
    if not found:
        return None
    fault = f"has the control character U+{ord(found[0]):04X} at character {found.start() + 1}"
    if not latex:
        return f"{fault}. No text needs it; remove it."
    rest = re.match(r"[A-Za-z]*", text[latex.end() :])
    command = f"\\{LETTERS[latex[0]]}{rest[0] if rest else ''}"
    return f"{fault}, which {command} with one backslash becomes. Write \\{command} in JSON."


def clean_text(text: str, where: str, what: str) -> str:
    """The text, stripped. Raises DataError for control characters; ``what`` is "column 'x'"."""
    fault = text_fault(text)
    if fault:
        raise DataError(f"{where}: {what} {fault}")
    return text.strip()


def looks_like_a_list(text: str) -> bool:
    """Whether a text is a list as JSON or Python writes it: of texts or of objects (``[0, 1]`` is an interval)."""
    return bool(re.match(r"""\s*\[\s*(?:["'{]|\])""", text)) and text.rstrip().endswith("]")


def refuse_list_as_text(text: str, where: str, what: str) -> None:
    """Raise DataError for a list that was written as one text."""
    if looks_like_a_list(text):
        raise DataError(
            f"{where}: {what} is a list written as text: {shown(text)}. It would be read with its brackets and "
            "escapes. Write the list itself (json.loads)."
        )


# ---- answers ------------------------------------------------------------------------------------------------------


def plain_number(value: Any) -> str | None:
    """A finite number in digits, exact: ``0.00003`` for 3e-05. None for anything else, true and false among them."""
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating | Decimal):
        return _digits(str(value))
    return None


def _digits(number: str) -> str | None:
    try:
        exact = Decimal(number)
    except InvalidOperation:
        return None
    if not exact.is_finite() or abs(exact.adjusted()) > LARGEST_EXPONENT:
        return None
    return format(exact, "f").removeprefix("-") if exact.is_zero() else format(exact, "f")


def without_exponent(text: str) -> str:
    """``60000`` for the text ``6e4``, as Python writes numbers; any other text as it is."""
    return (_digits(text) or text) if PYTHON_NUMBER.fullmatch(text) else text


def answer_text(value: Any, where: str, what: str, rest: str = ". Give text or a number, or remove the row.") -> str:
    """The one answer that a value holds, as text; numbers in exact digits, a list of one as its item. ``what`` is
    "column 'answer'", and ``rest`` the end of the message about a value that is none.
    """
    items = as_list(value)
    if items is not None and len(items) != 1:
        raise DataError(
            f"{where}: {what} is a list of {len(items)} answers: {shown(items)}. The reward compares with one text. "
            "Join the parts of one answer by commas, or keep one of several equal ones."
        )
    return exact_text(value if items is None else items[0], where, what, rest)


def exact_text(value: Any, where: str, what: str, rest: str = ". Give text or a number, or remove the row.") -> str:
    """The same, of which no list is a value."""
    number = plain_number(value)
    if number is not None:
        return number
    if isinstance(value, str) and value.strip():
        return clean_text(value, where, what)
    raise DataError(f"{where}: {what} is {shown(value)}{rest}")


def as_list(value: Any) -> list[Any] | None:
    """The items of a list, tuple, array, or of a list of texts that JSON or Python wrote as text; None for others."""
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.ndim else [value.item()]
    if isinstance(value, str) and value.lstrip()[:2] in ("['", '["'):
        try:
            value = ast.literal_eval(value.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
    return list(value) if isinstance(value, list | tuple) else None


def answer_fault(value: Any, one: bool = False) -> str | None:
    """What is wrong with a ground truth that is in a file already; None if nothing. Records and lists of several are a
    reward's own form, unless it compares with ``one`` text."""
    items = as_list(value)
    if items == []:
        return "is an empty list"
    if items is not None and len(items) > 1:
        return f"is a list of {len(items)} answers, {shown(items)}, and the reward compares with one" if one else None
    item = value if items is None else items[0]
    if isinstance(item, list | dict):
        return f"is {type(value).__name__} {shown(value)}, not text" if one else None
    if item is None:
        return "is missing"
    if isinstance(item, bool | np.bool_):
        return f"is {item}"
    if isinstance(item, float | np.floating | Decimal) and plain_number(item) is None:
        return f"is {item}, no number"
    if not isinstance(item, str):
        return None
    return text_fault(item) if item.strip() else "is empty"
