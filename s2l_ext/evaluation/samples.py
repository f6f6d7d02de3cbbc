"""Graded samples on disk: one line each, appended as they finish, so that a killed evaluation continues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s2l_ext.errors import DataError, StateMismatch
from s2l_ext.evaluation.grading import Grade
from s2l_ext.utils import json_text
from s2l_ext.utils.jsonl import Journal, whole_lines
from s2l_ext.utils.secrets import masked

SCHEMA_VERSION = 1
HEADER = "s2l_samples"
START = f'{{"{HEADER}": '.encode()


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
    timed_out: bool = False

    @property
    def outcome(self) -> Outcome:
        grade = self.score, self.correct, self.answer, self.timed_out
        return Outcome(*grade, length=len(self.token_ids), truncated=self.truncated)


@dataclass(frozen=True, kw_only=True)
class Outcome(Grade):
    """What the numbers need of a sample; tokens and text stay on disk. ``length`` in tokens."""

    length: int
    truncated: bool


class SampleFile:
    """``<out>.samples.jsonl``: a line with what the samples depend on, then one line a sample. ``outcomes`` are by
    problem and index of the sample.

    One process at a time; a half-written last line is cut off, its sample is drawn again. Raises StateMismatch: the
    file belongs to other settings; DataError: it is damaged, in use, or cannot be written.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any]) -> None:
        self.path = path
        self.outcomes: dict[tuple[str, int], Outcome] = {}
        self._journal = Journal(path, "another evaluation writes this file")
        try:
            self._continue(masked(json.loads(json.dumps(fingerprint))))
        except BaseException:
            self.close()
            raise

    def _continue(self, fingerprint: dict[str, Any]) -> None:
        there = read_fingerprint(self.path)
        if there is not None:
            _refuse_other(self.path, there, fingerprint)
            self.outcomes = {(sample.prompt_id, sample.index): sample.outcome for sample in _read_lines(self.path)}
        self._journal.cut()
        if there is None:
            self._journal.add(_encode_line({HEADER: SCHEMA_VERSION, "fingerprint": fingerprint}))

    def add(self, sample: Sample) -> None:
        """Append a sample; after this returns, a kill loses nothing of it."""
        self._journal.add(_encode_line(asdict(sample)))
        self.outcomes[sample.prompt_id, sample.index] = sample.outcome

    def close(self) -> None:
        self._journal.close()

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_samples(path: Path) -> Iterator[Sample]:
    """Samples of a file that ``s2l eval`` wrote, one by one; a half-written last line is left out. Raises DataError: it
    is no such file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. Expected the .samples.jsonl that s2l eval writes beside --out.")
    if read_fingerprint(path) is None:
        raise DataError(f"{path}: holds nothing that s2l eval wrote. Expected a .samples.jsonl file.")
    return _read_lines(path)


def read_fingerprint(path: Path) -> dict[str, Any] | None:
    """What the samples depend on; None for an empty file or a first line that a kill cut short. Raises DataError: the
    file holds something else."""
    with open(path, "rb") as file:
        line = file.readline()
    if not line.endswith(b"\n") and START.startswith(line[: len(START)]):
        return None
    try:
        header = json_text.loads(line)
        version, fingerprint = header[HEADER], dict(header["fingerprint"])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{path}:1: not a file of samples that s2l eval wrote. Choose another --out, or move it away."
        ) from None
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}:1: schema {version!r}, this version reads {SCHEMA_VERSION}. Choose another --out.")
    return fingerprint


def _read_lines(path: Path) -> Iterator[Sample]:
    for number, line in whole_lines(path):
        if number > 1:
            try:
                yield Sample(**json_text.loads(line))
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{path}:{number}: not a sample ({error}). Remove that line; its sample is drawn again."
                ) from error


def _encode_line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")


def _refuse_other(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    for name in [*here, *(name for name in there if name not in here)]:
        if there.get(name) != here.get(name):
            raise StateMismatch(
                f"{path}: its samples were drawn with another {name}: {there.get(name)}, now {here.get(name)}. Use the "
                "same, choose another --out, or remove the file to start over."
            )
