"""What can be wrong with a parquet file that somebody else wrote, or that a disk damaged."""

from __future__ import annotations

from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ext.errors import DataError

UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for damaged or unknown content; ``ArrowInvalid`` is one of a dozen."""
MOST_VALUES = 2**31 - 1


def reason(error: Exception) -> str:
    """The error's words on one line; pyarrow's can be pages."""
    return " ".join(str(error).split())[:200]


def refuse_oversized(file: pq.ParquetFile, path: Path) -> None:
    """A file of a kilobyte can declare lists of a billion values, which reading would unpack.

    Raises:
        DataError: a row group declares more values of one column than arrow counts, or more bytes than are free.
    """
    free = psutil.virtual_memory().available
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        values = max((group.column(c).num_values for c in range(group.num_columns)), default=0)
        if values > MOST_VALUES or values < 0:
            raise DataError(
                f"{path}: row group {number} declares {values:,} values of one column, at most {MOST_VALUES:,} can be "
                "read. The file is damaged, or must be written with smaller row groups."
            )
        if not 0 <= group.total_byte_size <= free:
            raise DataError(
                f"{path}: row group {number} declares {group.total_byte_size / 1e9:.1f} GB, {free / 1e9:.1f} GB of "
                "memory are free. Write it with smaller row groups, or on a larger machine."
            )
