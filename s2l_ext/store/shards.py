"""Writing a store's shards and its manifest: each appears whole, and a shard before the manifest that names it."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike

from s2l_ext.store.reader import MANIFEST, SCHEMA, Manifest, Rollout, Shard
from s2l_ext.utils import json_text
from s2l_ext.utils.digests import sha256_file
from s2l_ext.utils.files import replacing, to_disk, write_atomically
from s2l_ext.utils.jsonl import cannot_write

ROW_GROUP = 64
"""Rows that are read together: few, because training asks for one prompt's responses at a time."""
SHARD_ROWS = 4096
SHARD_BYTES = 32 << 20
TOKEN_BYTES = 8
PACKED: dict[str, DTypeLike] = {"prompt_ids": "<i4", "token_ids": "<i4", "log_probs": "<f4"}
"""What a line of the journal keeps as base64 of their numbers: as decimals they take the engine's time."""


def prompts_of_a_shard(n: int, sampling: Mapping[str, Any], most: int = SHARD_ROWS) -> int:
    """So many that their ``n`` longest responses are at most ``most`` and 32 MB; at least one."""
    in_bytes = SHARD_BYTES // (TOKEN_BYTES * int(sampling.get("max_tokens", 1)))
    return max(1, min(most, in_bytes) // n)


def slices(names: Sequence[str], size: int) -> list[Sequence[str]]:
    """The names in their order, ``size`` at a time."""
    return [names[start : start + size] for start in range(0, len(names), size)]


def encode(rollout: Rollout, problem: str) -> bytes:
    """A line of the journal: a response and the digest of its problem."""
    record = vars(rollout) | {"problem": problem}
    for name, dtype in PACKED.items():
        record[name] = base64.b64encode(np.asarray(record[name], dtype=dtype).tobytes()).decode()
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8")


def decode(line: bytes) -> tuple[Rollout, str]:
    """What :func:`encode` made a line of. Raises AttributeError, KeyError, TypeError or ValueError for another line."""
    record: dict[str, Any] = json_text.loads(line)
    for name, dtype in PACKED.items():
        record[name] = np.frombuffer(base64.b64decode(record[name], validate=True), dtype=dtype).tolist()
    problem = record.pop("problem")
    rollout = Rollout(**record)
    if len(rollout.token_ids) != len(rollout.log_probs):
        raise ValueError(f"{len(rollout.token_ids)} tokens, {len(rollout.log_probs)} log-probabilities")
    return rollout, problem


def write_shard(folder: Path, number: int, rows: Sequence[tuple[Rollout, str]]) -> Shard:
    """``shard-<number>.parquet`` with these responses and their problems' digests, ordered by prompt and index. Raises
    DataError: it cannot be written; nothing of it is left."""
    path = folder / shard_name(number)
    ordered = sorted(rows, key=lambda row: (row[0].prompt_id, row[0].index))
    table = pa.Table.from_pylist([vars(rollout) | {"problem": problem} for rollout, problem in ordered], SCHEMA)
    try:
        with replacing(path) as partial:
            pq.write_table(table, partial, row_group_size=ROW_GROUP, compression="zstd")
        to_disk(folder)
    except OSError as error:
        raise cannot_write(path, error) from error
    return Shard(path.name, sha256_file(path), path.stat().st_size, len(rows))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace ``store.json``. Raises DataError when it cannot be written; the old one stays."""
    try:
        write_atomically(folder / MANIFEST, manifest.as_json())
        to_disk(folder)
    except OSError as error:
        raise cannot_write(folder / MANIFEST, error) from error


def free_numbers(folder: Path) -> Iterator[int]:
    """Numbers that no shard has, in order."""
    return (number for number in itertools.count() if not (folder / shard_name(number)).exists())


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
