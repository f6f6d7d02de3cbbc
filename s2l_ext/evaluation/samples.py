"""Graded samples on disk: one line each, appended as they finish, so that a killed evaluation goes on."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s2l_ext.errors import DataError, StateMismatch

SCHEMA_VERSION = 1
HEADER = "s2l_samples"


@dataclass(frozen=True)
class Sample:
    """One response. ``token_ids`` end with the stop token unless the response was ``truncated``."""

    prompt_id: str
    index: int
    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    truncated: bool
    score: float
    correct: bool
    answer: str | None

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt_id, self.index


class SampleFile:
    """``<out>.samples.jsonl``: a line with what the samples depend on, then one line a sample.

    One process at a time; a half-written last line is cut off, its sample is drawn again.

    Raises:
        StateMismatch: the file belongs to other settings; names the first difference.
        DataError: a line before the last is damaged, another process writes, or the file cannot be written.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any]) -> None:
        self.path = path
        fingerprint = json.loads(json.dumps(fingerprint))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._lock()
            self.samples = self._continue(fingerprint)
        except OSError as error:
            raise self._failed(error) from error

    def add(self, sample: Sample) -> None:
        """Append a sample; after this returns, a kill loses nothing of it."""
        self.samples[sample.key] = sample
        self._write(asdict(sample))

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{self.path}: another evaluation writes this file. Wait for it, or choose another --out."
            ) from None

    def _continue(self, fingerprint: dict[str, Any]) -> dict[tuple[str, int], Sample]:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        lines = content[:whole].splitlines()
        if not lines:
            self._write({HEADER: SCHEMA_VERSION, "fingerprint": fingerprint})
            return {}
        _refuse_other(self.path, _header(self.path, lines[0]), fingerprint)
        return {sample.key: sample for sample in _parse(self.path, lines[1:])}

    def _write(self, record: dict[str, Any]) -> None:
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> DataError:
        return DataError(
            f"{self.path}: cannot be written ({error.strerror}). Samples already there are kept; make room or choose "
            "another --out, then run the same command again."
        )


def read_samples(path: Path) -> list[Sample]:
    """Samples of a file that ``s2l eval`` wrote; a half-written last line is left out.

    Raises:
        DataError: the file is missing, holds something else or has no samples.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. Expected the .samples.jsonl that s2l eval writes beside --out.")
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    _header(path, lines[0] if lines else b"")
    samples = _parse(path, lines[1:])
    if not samples:
        raise DataError(f"{path}: no samples.")
    return samples


def _header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
        version, fingerprint = header[HEADER], dict(header["fingerprint"])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{path}:1: not a file of samples that s2l eval wrote. Choose another --out, or move the file away."
        ) from None
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}:1: schema {version!r}, this version reads {SCHEMA_VERSION}. Choose another --out.")
    return fingerprint


def _refuse_other(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    for name in [*here, *(name for name in there if name not in here)]:
        if there.get(name) != here.get(name):
            raise StateMismatch(
                f"{path}: its samples were drawn with another {name}: {there.get(name)}, now {here.get(name)}. Use the "
                "same, choose another --out, or remove the file to start over."
            )


def _parse(path: Path, lines: Iterable[bytes]) -> list[Sample]:
    samples = []
    for number, line in enumerate(lines, start=2):
        try:
            samples.append(Sample(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}:{number}: not a sample ({error}). Remove that line; it is drawn again.") from error
    return samples
