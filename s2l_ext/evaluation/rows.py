"""Rows of a benchmark as they were published: JSON lines, CSV or parquet with any columns."""

from __future__ import annotations

import csv
import gzip
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s2l_ext.data import reading
from s2l_ext.data.reading import parquet_columns as parquet_columns
from s2l_ext.errors import DataError

JSON_LINES = (".jsonl", ".jsonl.gz")
SUFFIXES = (*JSON_LINES, ".csv", ".parquet")

Rows = Iterator[tuple[str, dict[str, Any]]]


def read_rows(path: Path) -> Rows:
    """``file:line`` (parquet: ``file:row``) and columns of every row.

    Raises:
        DataError: the file is of no known kind, or cannot be read as what its name says.
    """
    return _read_csv(path) if path.suffix == ".csv" and not reading.is_parquet(path) else reading.read_rows(path)


def require_known_kind(path: Path) -> None:
    """Raise DataError unless the file is there, of a kind that is read, and so called."""
    reading.require_file(path, "--data")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"--data {path}: expected a file that ends in {', '.join(SUFFIXES)}.")


def _read_csv(path: Path) -> Rows:
    csv.field_size_limit(sys.maxsize)
    try:
        opener: Any = gzip.open if reading.kind_of(path) == reading.GZIP else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row:
                    raise DataError(f"{path}:{reader.line_num}: more fields than the first line has names.")
                yield f"{path}:{reader.line_num}", row
    except (csv.Error, OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 CSV ({error}).") from error
