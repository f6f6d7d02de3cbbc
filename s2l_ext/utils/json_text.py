"""JSON that others may have written: whatever is wrong with it is a ValueError, which readers turn into their words."""

from __future__ import annotations

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """``json.loads``, of which a text nested too deep is a ValueError too, not an error of the interpreter.

    Raises:
        ValueError: not JSON (``json.JSONDecodeError``), no UTF-8, a whole number of thousands of digits, or nested
            deeper than the interpreter's stack.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
