"""Rows of files that others wrote: JSON lines or parquet, told by their content, whatever they are called."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from s2l_ext.data import values
from s2l_ext.errors import DataError
from s2l_ext.utils import json_text

BATCH_ROWS = 256
LONGEST_LINE = 64 << 20
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
GZIP, PARQUET, TAR = "gzip", "parquet", "tar"
UNPACK = "which is not read here. Unpack it:"
UTF8 = "and only UTF-8 is read. Convert it: iconv -f"
BEGINNINGS = {
    b"\x1f\x8b": (GZIP, "is compressed with gzip twice. Unpack it: gunzip"),
    b"PAR1": (PARQUET, f"is parquet inside gzip, {UNPACK} gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", f"is compressed with zstd, {UNPACK} zstd -d"),
    b"BZh": ("bzip2", f"is compressed with bzip2, {UNPACK} bunzip2"),
    b"\xfd7zXZ\x00": ("xz", f"is compressed with xz, {UNPACK} unxz"),
    b"PK\x03\x04": ("zip", f"is a zip archive (or a workbook), {UNPACK} unzip"),
    b"PK\x05\x06": ("zip", f"is a zip archive (or a workbook), {UNPACK} unzip"),
    b"ARROW1": ("Arrow", "is an Arrow (Feather) file, which is not read here. Write it as parquet:"),
    b"\xff\xfe\x00\x00": ("UTF-32", f"is UTF-32 text, {UTF8} UTF-32 -t UTF-8"),
    b"\xff\xfe": ("UTF-16", f"is UTF-16 text, {UTF8} UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16", f"is UTF-16 text, {UTF8} UTF-16 -t UTF-8"),
    b"version https://git-lfs": (
        "Git LFS",
        "is a pointer of Git LFS, not the data. Fetch the file: git lfs pull --include",
    ),
}
"""What files begin with, what they are then, and how to make them readable; the first that fits."""
TAR_MARK, TAR_AT = b"ustar", 257
BEGINNING_BYTES = TAR_AT + len(TAR_MARK)
FIXES = dict(BEGINNINGS.values()) | {TAR: f"is a tar archive, {UNPACK} tar -xf"}
SHOWN_FILES, SHOWN_CHARS = 3, 40
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for damaged or unknown content; ``ArrowInvalid`` is one of a dozen."""
MOST_ROWS = 2**31 - 1

Rows = Iterator[tuple[str, dict[str, Any]]]


def require_file(path: Path, option: str = "") -> None:
    """Raise DataError unless there is a file of a kind that can be read. ``option`` stands before its name."""
    name = f"{option} {path}" if option else str(path)
    if os.path.isdir(path):  # Path.is_dir raises OSError for a name that is too long
        files = sorted(file.name for file in path.iterdir() if file.is_file())[:SHOWN_FILES]
        raise DataError(f"{name}: is a folder, not a file. Give the files in it ({', '.join(files) or 'it has none'}).")
    if not os.path.isfile(path):
        raise DataError(f"{name}: no such file.")
    kind = kind_of(path)
    fix = FIXES.get(_kind_of_content(_read_unpacked(path)) if kind == GZIP else kind) if kind != PARQUET else None
    if fix:
        raise DataError(f"{name}: {fix} {path.name}")


def kind_of(path: Path) -> str:
    """``gzip``, ``parquet``, another kind of BEGINNINGS, or ``text``."""
    return _kind_of_content(_read_beginning(path))


def _read_beginning(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(BEGINNING_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def _read_unpacked(path: Path) -> bytes:
    """The first bytes that a gzipped file unpacks to; none if it is damaged, which whoever reads it will say."""
    try:
        with gzip.open(path, "rb") as file:
            return file.read(BEGINNING_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""


def _kind_of_content(start: bytes) -> str:
    if start[TAR_AT:BEGINNING_BYTES] == TAR_MARK:
        return TAR
    return next((kind for mark, (kind, _) in BEGINNINGS.items() if start.startswith(mark)), "text")


def read_rows(
    path: Path, columns: Sequence[str] | None = None, limit: int | None = None, progress: bool = False
) -> Rows:
    """``file:line`` (parquet: ``file:row``, from 0) and columns of every row of JSON lines, plain or gzipped, or of
    parquet, where ``columns`` are those that are wanted.
    """
    require_file(path)
    if is_parquet(path):
        yield from read_parquet(path, columns, limit, progress)
        return
    lines = tqdm(islice(_read_lines(path), limit), desc=path.name, unit=" rows", disable=not progress)
    number = 0
    for number, line in lines:
        yield f"{path}:{number}", _parse_line(line, path, number)
    if not number:
        raise DataError(f"{path}: the file has no rows. Expected JSON lines: one JSON object a line.")


def is_parquet(path: Path) -> bool:
    """By content; a damaged file of that name is one too, unless it begins as a JSON object does."""
    start = _read_beginning(path)
    kind = _kind_of_content(start)
    is_json = start.removeprefix(BOM_UTF8).lstrip().startswith(b"{")
    return kind == PARQUET or (kind == "text" and path.suffix == ".parquet" and not is_json)


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    opener: Any = gzip.open if kind_of(path) == GZIP else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), ""), start=1):
                if len(line) > LONGEST_LINE:  # a compressed file of a megabyte can hold a line of a gigabyte
                    raise DataError(
                        f"{path}:{number}: a line of more than {LONGEST_LINE:,} characters. JSON lines have one row a "
                        "line; a file that is one JSON list is none."
                    )
                if line.strip():
                    yield number, line
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 JSONL ({error}).") from error


def _parse_line(line: str, path: Path, number: int) -> dict[str, Any]:
    where = f"{path}:{number}"
    if "\0" in line:
        raise DataError(
            f"{where}: has a NUL byte. UTF-16 text and binary files have them, and only UTF-8 is read. Convert the "
            "file, or remove the bytes."
        )
    try:
        record = json_text.loads(line, once=True)
    except json.JSONDecodeError as error:
        _refuse_one_document(line, path, number)
        found = values.shown(line.strip()[:SHOWN_CHARS])
        raise DataError(
            f"{where}: not JSON ({error.msg} at column {error.colno}): {found}. Write one JSON object a line."
        ) from error
    except ValueError as error:  # Python tells a programmer how to raise its limit of digits
        number_too_long = "a number of thousands of digits; write it as text"
        said = number_too_long if "integer string" in str(error) else str(error)
        raise DataError(f"{where}: not JSON that can be read ({said}).") from error
    if not isinstance(record, dict):
        if isinstance(record, list) and record and isinstance(record[0], dict):
            _refuse_one_document("[", path, number)
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}.")
    if "\\ud" in line.lower():
        _refuse_half_characters(line, where)
    if NUL.search(line):
        raise DataError(f"{where}: has a NUL character. No text has one, and readers stop at it; remove it.")
    return record


def _refuse_one_document(line: str, path: Path, number: int) -> None:
    """Raise DataError for the first line of a file that is one JSON document over many lines."""
    start = line.strip()
    if number == 1 and (start == "[" or re.match(r"\[\s*\{", start)):
        raise DataError(
            f"{path}: is one JSON list. JSON lines are wanted: one object a line, no brackets around them. Convert it: "
            f"jq -c '.[]' {path.name} > rows.jsonl"
        )
    if start == "{":
        raise DataError(
            f"{path}:{number}: a JSON object over several lines. JSON lines are wanted: one object a line. Convert it: "
            f"jq -c . {path.name} > rows.jsonl"
        )


def _refuse_half_characters(line: str, where: str) -> None:
    """JSON can write half of a surrogate pair; neither parquet nor a tokenizer can take one."""
    try:
        json.dumps(json.loads(line), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: has half of a surrogate pair ({error.reason}). Write the whole character."
        ) from error


# ---- parquet ------------------------------------------------------------------------------------------------------


def reason(error: Exception) -> str:
    """The error's words on one line; pyarrow's can be pages."""
    return " ".join(str(error).split())[:200]


@contextmanager
def open_parquet(path: Path, fix: str = "") -> Iterator[pq.ParquetFile]:
    """The file, to read from. DataError, which ends in ``fix``, if it is damaged or declares what no memory holds, also
    for an error of the reading inside.
    """
    try:
        with pq.ParquetFile(path) as file:
            _refuse_oversized(file, path)
            yield file
    except UNREADABLE as error:
        raise DataError(f"{path}: not a readable parquet file ({reason(error)}).{fix and ' '}{fix}") from error


def _refuse_oversized(file: pq.ParquetFile, path: Path) -> None:
    """DataError for a damaged or hostile file that declares more rows than arrow counts, or more bytes than are free.
    (The declarations of single columns are not read: pyarrow ends the process over a column without any.)
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


def parquet_columns(path: Path) -> list[str]:
    """Names of the columns. Raises DataError for a file that is no parquet."""
    with open_parquet(path) as file:
        return list(file.schema_arrow.names)


def read_parquet(
    path: Path, columns: Sequence[str] | None = None, limit: int | None = None, progress: bool = False
) -> Rows:
    """``file:row`` (rows from 0) and the wanted columns that the file has, a batch in memory at a time."""
    require_file(path)
    with open_parquet(path) as file:
        if file.metadata.num_rows == 0:
            raise DataError(f"{path}: the file has no rows.")
        twice = next((name for name, times in Counter(file.schema_arrow.names).items() if times > 1), None)
        if twice is not None:
            raise DataError(f"{path}: has the column '{twice}' twice. Only one could be read; remove the other.")
        rows = file.metadata.num_rows if limit is None else min(limit, file.metadata.num_rows)
        found = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=found)
        records = (record for batch in batches for record in python_rows(batch))
        bar = tqdm(zip(range(rows), records, strict=False), desc=path.name, total=rows, disable=not progress)
        yield from ((f"{path}:{number}", record) for number, record in bar)


def python_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as Python values; a float32 as the shortest decimal that it is (0.1, not 0.10000000149011612)."""
    for index, column in enumerate(batch.schema):
        if column.type in (pa.float16(), pa.float32()):
            exact = batch.column(index).cast(pa.float32()).cast(pa.string()).cast(pa.float64())
            batch = batch.set_column(index, column.name, exact)
    return list(batch.to_pylist())
