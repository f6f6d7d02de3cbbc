"""Rows of a benchmark as they were published: JSON lines, CSV or parquet with any columns, or the hub."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s2l_ext.data import reading
from s2l_ext.data.reading import parquet_columns as parquet_columns
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.utils.files import cache_root, replacing

JSON_LINES = (".jsonl", ".jsonl.gz")
SUFFIXES = (*JSON_LINES, ".csv", ".parquet")
HUB = "hf://"
ADDRESS = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
BATCH_ROWS = 256

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


# ---- the hub ------------------------------------------------------------------------------------------------------


def local_file(data: Path | str) -> Path:
    """The file itself, or the hub's rows as a file of JSON lines in the cache.

    Args:
        data: a path, or ``hf://owner/name[:config][@split]``.

    Raises:
        ConfigError: the address is malformed.
        DataError: the hub gave no rows; names the data set and what to do without the hub.
    """
    return _fetch_rows(data) if isinstance(data, str) and data.startswith(HUB) else Path(data).expanduser()


def _fetch_rows(address: str) -> Path:
    found = ADDRESS.fullmatch(address.removeprefix(HUB))
    if found is None:
        raise ConfigError(f"--data {address}: expected hf://owner/name, hf://owner/name:config or ...@split.")
    rows = _load_rows(address, found["name"], found["config"], found["split"])
    path = cache_root() / "hub" / f"{re.sub(r'[/:@]', '--', found[0])}.jsonl"
    try:
        _write_json_lines(path, rows)
    except OSError as error:
        raise DataError(f"--data {address}: {path} cannot be written ({error.strerror}). Make room there.") from error
    return path


def _load_rows(address: str, name: str, config: str | None, split: str | None) -> Any:
    import datasets

    try:
        found = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"--data {address}: the hub gave no rows of {name} ({type(error).__name__}: {reason}). Without the hub, "
            f"download the data set's file elsewhere and give it: --data FILE ({', '.join(SUFFIXES)}). A gated set "
            "needs its terms accepted and HF_TOKEN."
        ) from error
    if split is not None:
        return found
    if len(found) > 1 and "test" not in found:
        raise DataError(f"--data {address}: choose a split: {', '.join(f'{address}@{each}' for each in found)}.")
    return found["test" if "test" in found else next(iter(found))]


def _write_json_lines(path: Path, rows: Any) -> None:
    """Batches as arrow tables: pictures are not decoded."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for table in rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table.to_pylist())
