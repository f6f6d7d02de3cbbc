"""A gold answer as the text that is judged, whatever a data file holds: text, a number, or a list of one of these."""

from __future__ import annotations

import math
from typing import Any

from s2l_ext.errors import DataError


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
        return as_text(_only(gold))
    if isinstance(gold, bool) or (isinstance(gold, float) and not math.isfinite(gold)):
        raise DataError(f"The ground truth {gold!r} is no answer. Give text or a finite number.")
    return str(gold).strip()


def _only(golds: list[Any] | tuple[Any, ...]) -> Any:
    if len(golds) == 1:
        return golds[0]
    raise DataError(
        f"The ground truth is a list of {len(golds)} ({str(golds)[:80]}), which may mean all of them or any. "
        "Write one text: 'a, b' where all are asked for."
    )
