"""Where a converter writes: names of files that stay in the folder, and what a file there was made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from s2l_ext.data import reading
from s2l_ext.errors import DataError
from s2l_ext.utils.digests import digest_of, sha256_file

SOURCE_KEY, ORIGIN_KEY = b"s2l.source", b"s2l.origin"


def require_file_name(name: str, option: str) -> None:
    """Raise DataError unless ``name`` can be a file's in a folder, without more of a path."""
    if not name or Path(name).name != name or name == ".." or "\0" in name:
        raise DataError(f"{option} {name!r} is not a file name. Give one without / and not empty, such as train.")


def nearest_folder(folder: Path) -> Path:
    """The folder itself or the first above it that exists. Raises DataError if a file stands in its place."""
    path = folder.absolute()
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not os.path.isdir(there):
        raise DataError(f"--out {folder}: {there} is not a folder. Choose another --out.")
    return there


def origin_of(command: str, data_source: str, files: Sequence[Path]) -> str:
    """Digest of command, data source and the content of the inputs, whatever they are called and in any order."""
    for path in files:
        reading.require_file(path)
    try:
        return digest_of([command, data_source, sorted(map(sha256_file, files))])
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from error


def refuse_other(path: Path, source: str, origin: str) -> None:
    """Raise DataError if ``path`` is there and was not made of the same. ``source`` is the command and its inputs in
    words.
    """
    if not os.path.lexists(path):
        return
    try:
        found = pq.read_schema(path).metadata or {}
    except reading.UNREADABLE:
        found = {}
    if found.get(ORIGIN_KEY, b"").decode() == origin:
        return
    made_by = found.get(SOURCE_KEY, b"").decode() or "not known where from"
    content = "these inputs have another content" if ORIGIN_KEY in found else "it does not say of what content"
    now = content if made_by == source else f"this is {source}"
    raise DataError(
        f"{path} exists and holds other data ({made_by}; {now}). Give another --out, or --overwrite to replace it."
    )
