"""What the mathematical judge reads of a gold answer, so that a bad data set is seen before a run.

A gold that is read in part, or not at all, is right for an answer of the very same text only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from s2l_ext.errors import DataError
from s2l_ext.rewards import fast_math, math_helper, spelling

KINDS = ("number", "expression", "several", "text", "in_part", "unread")
UNSAFE = ("in_part", "unread")
LONGEST = 4000


def as_text(gold: Any) -> str:
    """The gold as text; a list of one is its element; empty for None and for blank text.

    Raises:
        DataError: the gold is a list of several (whether all of them are asked for, or any, differs between data
            sets), an empty list, true, false, NaN or infinite.
    """
    if isinstance(gold, str):
        return gold.strip()
    if gold is None:
        return ""
    gold = gold.tolist() if hasattr(gold, "tolist") else gold
    if isinstance(gold, list | tuple):
        if len(gold) != 1:
            raise DataError(
                f"The ground truth is a list of {len(gold)} ({str(gold)[:80]}), which may mean all of them or any. "
                "Write one text: 'a, b' where all are asked for."
            )
        return as_text(gold[0])
    if isinstance(gold, bool) or (isinstance(gold, float) and not math.isfinite(gold)):
        raise DataError(f"The ground truth {gold!r} is no answer. Give text or a finite number.")
    return str(gold).strip()


@dataclass(frozen=True)
class GoldReading:
    """How a gold is read, and what of it is compared (``read``).

    ``kind`` is ``number``; ``expression``; ``several`` (a list, all of which are asked for); ``text`` (words or a
    letter, compared as such); ``in_part`` (prose around formulas) and ``unread`` (LaTeX that math-verify cannot read, a
    list of golds, nothing at all), which only the same text equals.
    """

    gold: str
    kind: str
    read: str


def read_gold(gold: Any) -> GoldReading:
    """How the judge reads ``gold`` (text, a number, a list of one). No gold raises."""
    try:
        text = as_text(gold)
    except DataError:
        return GoldReading(str(gold), "unread", "")
    if not text or len(text) > LONGEST:
        return GoldReading(text, "unread", "")
    plain = spelling.plain(text)
    if fast_math.number(plain) is not None:
        return GoldReading(text, "number", plain)
    found = math_helper.read(text)
    return GoldReading(text, str(found.get("kind", "unread")), str(found.get("read", "")))
