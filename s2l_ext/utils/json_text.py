"""JSON that others may have written: whatever is wrong with it is a ValueError, which readers turn into their words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def loads(text: str | bytes, once: bool = False) -> Any:
    """``json.loads``, of which a text nested too deep is a ValueError too, not an error of the interpreter. ``once``: a
    key that is twice in an object is one as well; otherwise the last one wins."""
    try:
        return json.loads(text, object_pairs_hook=_once if once else None)
    except RecursionError:
        raise ValueError("nested too deep") from None


def mapping_at(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where the file is missing, damaged or holds something else."""
    try:
        content = loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice[:60]}' is twice in one object; keep one")
    return found
