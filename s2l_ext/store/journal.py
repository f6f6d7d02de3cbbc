"""Responses that are not in a shard yet: one line each, appended as they are graded, so that a kill loses none."""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from s2l_ext.errors import DataError
from s2l_ext.store.reader import Rollout
from s2l_ext.utils import json_text

FILE_NAME = "journal.jsonl"
PACKED: dict[str, DTypeLike] = {"prompt_ids": "<i4", "token_ids": "<i4", "log_probs": "<f4"}
"""Columns kept as base64 of their numbers: a decimal text of 20 000 numbers a second would hold the engine up."""


class Journal:
    """``journal.jsonl`` of a store. One process at a time; a half-written last line is cut off.

    Raises:
        DataError: a line before the last is damaged, another process writes, or the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise DataError(
                f"{self.path}: another `s2l explore` writes this store. Wait for it, or choose another --out."
            ) from error

    def read(self) -> list[tuple[Rollout, str]]:
        """Responses with the digests of their problems; what follows the last whole line is cut off."""
        found, whole = [], 0
        for record, end in self._lines():
            found.append(record)
            whole = end
        os.ftruncate(self._file, whole)
        return found

    def add(self, rollout: Rollout, problem: str) -> int:
        """Append a response; after this returns, a kill loses nothing of it. Returns the bytes written."""
        line = encode(rollout, problem)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return len(line)

    def clear(self) -> None:
        """Forget all, once a shard has them."""
        os.ftruncate(self._file, 0)

    def close(self) -> None:
        os.close(self._file)

    def _lines(self) -> Iterator[tuple[tuple[Rollout, str], int]]:
        end = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield self._decode(line, number), end

    def _decode(self, line: bytes, number: int) -> tuple[Rollout, str]:
        try:
            return decode(line)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.path}:{number}: not a response ({error}). Remove that line; its response is drawn again."
            ) from error


def encode(rollout: Rollout, problem: str) -> bytes:
    """One line."""
    record = vars(rollout) | {"problem": problem}
    for name, dtype in PACKED.items():
        record[name] = base64.b64encode(np.asarray(record[name], dtype=dtype).tobytes()).decode()
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8")


def decode(line: bytes) -> tuple[Rollout, str]:
    """A line's response and the digest of its problem. Raises ValueError, KeyError or TypeError for another line."""
    record: dict[str, Any] = json_text.loads(line)
    for name, dtype in PACKED.items():
        record[name] = np.frombuffer(base64.b64decode(record[name], validate=True), dtype=dtype).tolist()
    problem = record.pop("problem")
    rollout = Rollout(**record)
    if len(rollout.token_ids) != len(rollout.log_probs):
        raise ValueError(f"{len(rollout.token_ids)} tokens, {len(rollout.log_probs)} log-probabilities")
    return rollout, problem


def cannot_write(path: Path, error: OSError) -> DataError:
    """What to say when the disk is full or the folder is read-only."""
    return DataError(
        f"{path}: cannot be written ({error.strerror or error}). Responses already there are kept; make room or mend "
        "the folder, then run the same command again."
    )
