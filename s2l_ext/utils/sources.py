"""Source files of functions that users name."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path


def source_file(place: str) -> str | None:
    """Of ``package.module:function`` or ``file.py:function``, found without importing it; None when there is none."""
    name = place.rpartition(":")[0] or place
    if name.endswith(".py"):
        return name if Path(name).expanduser().is_file() else None
    path: Sequence[str] | None = [os.getcwd(), *sys.path]
    spec, parts = None, name.split(".")
    for number in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:number]), path) if path is not None else None
        path = spec.submodule_search_locations if spec else None
    return spec.origin if spec and spec.origin and Path(spec.origin).is_file() else None


def user_source(place: str) -> str | None:
    """Likewise, and None for this package's own: its version says what it does."""
    return None if place.startswith("s2l_ext.") else source_file(place)
