"""What can be wrong with a parquet file that somebody else wrote, or that a disk damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ext.errors import DataError

UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for damaged or unknown content; ``ArrowInvalid`` is one of a dozen."""
MOST_ROWS = 2**31 - 1


def reason(error: Exception) -> str:
    """The error's words on one line; pyarrow's can be pages."""
    return " ".join(str(error).split())[:200]


@contextmanager
def open_parquet(path: Path, fix: str = "") -> Iterator[pq.ParquetFile]:
    """The file, to read from.

    Args:
        fix: what to do about a file that cannot be read, a sentence.

    Raises:
        DataError: it is damaged, or declares what no memory holds; also for an error of the reading inside.
    """
    try:
        with pq.ParquetFile(path) as file:
            _refuse_oversized(file, path)
            yield file
    except UNREADABLE as error:
        raise DataError(f"{path}: not a readable parquet file ({reason(error)}).{fix and ' '}{fix}") from error


def _refuse_oversized(file: pq.ParquetFile, path: Path) -> None:
    """A damaged or hostile file can declare what no memory holds. (The declarations of single columns are not read:
    pyarrow ends the process over a column without any.)

    Raises:
        DataError: a row group declares more rows than arrow counts, or more bytes than are free.
    """
    free = psutil.virtual_memory().available
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        if not 0 <= group.num_rows <= MOST_ROWS:
            raise DataError(
                f"{path}: row group {number} declares {group.num_rows:,} rows, at most {MOST_ROWS:,} can be read. The "
                "file is damaged, or must be written with smaller row groups."
            )
        if not 0 <= group.total_byte_size <= free:
            raise DataError(
                f"{path}: row group {number} declares {group.total_byte_size / 1e9:.1f} GB, {free / 1e9:.1f} GB of "
                "memory are free. Write it with smaller row groups, or on a larger machine."
            )
