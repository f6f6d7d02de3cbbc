"""Writing a store's shards and its manifest: each appears whole, and a shard before the manifest that names it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ext.store.journal import cannot_write
from s2l_ext.store.reader import MANIFEST, SCHEMA, Manifest, Rollout, Shard
from s2l_ext.utils.digests import sha256_file
from s2l_ext.utils.files import to_disk, write_atomically

ROW_GROUP = 64
"""Rows that are read together: few, because training asks for one prompt's responses at a time."""


def write_shard(folder: Path, number: int, rows: Sequence[tuple[Rollout, str]]) -> Shard:
    """``shard-<number>.parquet`` with these responses and their problems' digests, ordered by prompt and index.

    Raises:
        DataError: it cannot be written; nothing of it is left.
    """
    path = folder / shard_name(number)
    partial = folder / f".{path.name}.partial"
    ordered = sorted(rows, key=lambda row: (row[0].prompt_id, row[0].index))
    table = pa.Table.from_pylist([vars(rollout) | {"problem": problem} for rollout, problem in ordered], SCHEMA)
    try:
        pq.write_table(table, partial, row_group_size=ROW_GROUP, compression="zstd")
        to_disk(partial)
        os.replace(partial, path)
        to_disk(folder)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
    return Shard(path.name, sha256_file(path), path.stat().st_size, len(rows))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace ``store.json``. Raises DataError when it cannot be written; the old one stays."""
    try:
        write_atomically(folder / MANIFEST, manifest.as_json())
        to_disk(folder)
    except OSError as error:
        raise cannot_write(folder / MANIFEST, error) from error


def next_number(folder: Path, shards: Sequence[Shard]) -> int:
    """A number that no shard has."""
    number = len(shards)
    while (folder / shard_name(number)).exists():
        number += 1
    return number


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.parquet"


def clear_leftovers(folder: Path, shards: Sequence[Shard]) -> None:
    """After a kill: half-written files go; shards that no manifest names are set aside as ``<name>.unnamed-<n>``.

    The journal has such a shard's rows, unless the manifest is an older copy that somebody put back.
    """
    named = {shard.name for shard in shards}
    for path in folder.glob(".*.partial"):
        path.unlink()
    for path in sorted(folder.glob("shard-*.parquet")):
        if path.name not in named:
            number = len(list(folder.glob(f"{path.name}.unnamed-*")))
            path.rename(path.with_name(f"{path.name}.unnamed-{number}"))
