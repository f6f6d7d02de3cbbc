"""Digests of files: what says that data or weights are the same as before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

READ_BYTES = 1 << 20


def file_digests(paths: Iterable[str]) -> list[str]:
    """SHA-256 of each file's content, in order; what is no local file is known by its address alone."""
    return [sha256_file(file) if (file := Path(path).expanduser()).is_file() else path for path in paths]


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, read in parts."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
