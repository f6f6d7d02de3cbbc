"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def nearest(name: Any, known: Iterable[str]) -> str | None:
    """The known name closest in spelling, None when none is near."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)), None)


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest known name, empty when none is near."""
    near = nearest(name, known)
    return f" Did you mean '{near}'?" if near else ""
