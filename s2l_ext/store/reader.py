"""Responses that a frozen explorer drew ahead of training, kept on disk: the reading side. ``s2l explore`` writes them.

A store is a folder with ``store.json`` (what the responses depend on, and every shard's SHA-256) and shards of parquet,
one row a response. A shard is never changed once ``store.json`` names it.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ext.data.reading import UNREADABLE, reason
from s2l_ext.errors import DataError
from s2l_ext.utils import json_text
from s2l_ext.utils.digests import sha256_file

MANIFEST = "store.json"
MARK = "s2l_store"
SCHEMA_VERSION = 1
CACHED_GROUPS = 16

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("index", pa.int32()),
        ("seed", pa.int64()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float32())),
        ("truncated", pa.bool_()),
        ("score", pa.float64()),
        ("acc", pa.float64()),
        ("text", pa.string()),
        ("problem", pa.string()),
    ]
)
"""``problem`` is a digest of what the response was drawn and graded with: prompt, ground truth and reward."""
INDEX_COLUMNS = ("prompt_id", "index", "acc", "problem")


@dataclass(frozen=True)
class Rollout:
    """One stored response, number ``index`` (from 0) of its prompt's. ``token_ids`` end with a stop token unless it was
    ``truncated`` at the limit; ``log_probs`` are under the distribution that each was drawn from (after temperature,
    top-p and top-k); ``acc`` is None if the reward does not say."""

    prompt_id: str
    index: int
    seed: int
    prompt_ids: list[int]
    token_ids: list[int]
    log_probs: list[float]
    truncated: bool
    score: float
    acc: float | None
    text: str


LONGEST_NAME = 200
"""Characters of a file's name; the usual limit of a file system is 255 bytes."""
ROLLOUT_COLUMNS = [each.name for each in fields(Rollout)]


@dataclass(frozen=True)
class Shard:
    """One parquet file of a store; ``size`` in bytes."""

    name: str
    sha256: str
    size: int
    rows: int

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.name, self.sha256)):
            raise TypeError(f"name and sha256 of shard {self.name!r} must be text")
        if not all(type(count) is int and count >= 0 for count in (self.size, self.rows)):
            raise TypeError(f"size and rows of shard {self.name!r} must be whole numbers")
        if Path(self.name).name != self.name or "\0" in self.name:
            raise ValueError(f"shard {self.name!r} lies outside the folder")
        if len(self.name) > LONGEST_NAME:
            raise ValueError(f"the name of shard {self.name[:40]}… has {len(self.name)} characters")


@dataclass(frozen=True)
class Manifest:
    """``store.json``: what the responses depend on (``fingerprint``), the last run's ``request`` (``n``, ``prompts``:
    their number, ``problems``: a digest of them), and whether it was carried out to the end (``complete``)."""

    fingerprint: dict[str, Any]
    request: dict[str, Any]
    complete: bool = False
    shards: tuple[Shard, ...] = ()

    def __post_init__(self) -> None:
        if not (isinstance(self.fingerprint, dict) and isinstance(self.request, dict)):
            raise TypeError("fingerprint and request must be mappings")
        if not isinstance(self.complete, bool):
            raise TypeError(f"complete is {self.complete!r}, not true or false")

    def as_json(self) -> str:
        return json.dumps({MARK: SCHEMA_VERSION, **asdict(self)}, indent=1) + "\n"


def is_store(folder: str | Path) -> bool:
    """Whether ``folder`` is one that ``s2l explore`` wrote, whole or not."""
    return (Path(folder).expanduser() / MANIFEST).is_file()


def read_manifest(folder: Path, key: str = "store") -> Manifest:
    """What a store says of itself; no shard is opened. ``key`` is where the user wrote the folder. Raises DataError: it
    is no store, or one that this version cannot read."""
    path = folder / MANIFEST
    if not path.is_file():
        found = "no store: it has no store.json" if folder.is_dir() else "no such folder"
        raise DataError(f"{key}={folder}: {found}. Expected a folder that `s2l explore --out` wrote.")
    try:
        document = json_text.loads(path.read_bytes())
        version = document.pop(MARK)
        if version == SCHEMA_VERSION:
            return Manifest(**document | {"shards": tuple(Shard(**shard) for shard in document["shards"])})
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(
            f"{key}={folder}: {MANIFEST} is damaged or was written by something else ({type(error).__name__}: "
            f"{reason(error)}). Restore it from a copy, or draw the store anew."
        ) from None
    raise DataError(
        f"{key}={folder}: {MANIFEST} has schema {version!r}, this version reads {SCHEMA_VERSION}. Use the version that "
        "wrote it, or draw the store anew."
    )


def check_shard(folder: Path, shard: Shard, key: str = "store") -> None:
    """Raise DataError unless the shard is there with the content that ``store.json`` names."""
    path = folder / shard.name
    if not path.is_file():
        raise _damage_error(folder, shard, key, "is missing")
    size = path.stat().st_size
    if size < shard.size:
        raise _damage_error(folder, shard, key, f"is truncated: {size} of {shard.size} bytes")
    found = sha256_file(path)
    if found != shard.sha256:
        was = f"its SHA-256 is {found[:12]}..., it was written with {shard.sha256[:12]}..."
        raise _damage_error(folder, shard, key, f"was changed: {was}")


def _damage_error(folder: Path, shard: Shard, key: str, what: str) -> DataError:
    return DataError(
        f"{key}={folder}: shard {shard.name} ({shard.rows} responses) {what}. Restore it from a copy; or take it out "
        f"of the list of shards in {MANIFEST} and run `s2l explore --only-missing`, which draws its responses again."
    )


@dataclass
class _Prompt:
    """Where a prompt's responses are, by index: shard and row; and what grading found."""

    rows: dict[int, tuple[int, int]] = field(default_factory=dict)
    acc: dict[int, float | None] = field(default_factory=dict)
    problem: str = ""


class RolloutStore:
    """A store, read-only. Opening it reads ids and grades; responses are read on demand. ``verify`` compares every
    shard's SHA-256, which reads the whole store once; ``key`` is where the user wrote the folder.

    ``fingerprint`` has at least ``model`` and ``tokenizer`` (digests), ``model_name``, ``sampling`` (temperature,
    top_p, top_k, max_tokens, seed, chat_options), ``data``, ``dtype`` and ``reward``. Where ``complete`` is false,
    responses may be missing. Raises DataError: no store, another schema, or a damaged one.
    """

    def __init__(self, folder: str | Path, key: str = "store", verify: bool = True) -> None:
        self.folder, self._key = Path(folder).expanduser(), key
        self.manifest = read_manifest(self.folder, key)
        self.fingerprint: dict[str, Any] = self.manifest.fingerprint
        self.complete = self.manifest.complete
        self._prompts: dict[str, _Prompt] = defaultdict(_Prompt)
        self._group_starts: list[list[int]] = []
        # a prompt's responses lie close together, so the last few row groups stay in memory
        self._group = lru_cache(CACHED_GROUPS)(self._read_group)
        for number, shard in enumerate(self.manifest.shards):
            if verify:
                check_shard(self.folder, shard, key)
            self._read_index(number, shard)

    @property
    def digest(self) -> str:
        """SHA-256 of what the store holds now, whatever its folder is called."""
        return hashlib.sha256("\n".join(sorted(shard.sha256 for shard in self.manifest.shards)).encode()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Stored responses by prompt id."""
        return {name: len(prompt.rows) for name, prompt in self._prompts.items()}

    def indices(self, prompt_id: str) -> set[int]:
        """Indices of the prompt's stored responses."""
        return set(self._prompts[prompt_id].rows) if prompt_id in self._prompts else set()

    def problems(self) -> dict[str, str]:
        """By prompt id, the digest of what its responses were drawn and graded with."""
        return {name: prompt.problem for name, prompt in self._prompts.items()}

    def rollouts(self, prompt_id: str) -> list[Rollout]:
        """The prompt's responses by index; empty if there are none."""
        places = self._prompts[prompt_id].rows if prompt_id in self._prompts else {}
        return [Rollout(**self._read_row(*places[index])) for index in sorted(places)]

    def rollout(self, prompt_id: str, number: int) -> Rollout:
        """The prompt's ``number``-th response by index, from 0; the others are not decoded."""
        places = self._prompts[prompt_id].rows
        return Rollout(**self._read_row(*places[sorted(places)[number]]))

    def every_rollout(self) -> Iterator[Rollout]:
        """All responses, prompt by prompt."""
        for name in self._prompts:
            yield from self.rollouts(name)

    def pass_rates(self) -> dict[str, float]:
        """Mean ``acc`` by prompt id; prompts whose reward gave none are left out."""
        graded = {name: [a for a in prompt.acc.values() if a is not None] for name, prompt in self._prompts.items()}
        return {name: sum(values) / len(values) for name, values in graded.items() if values}

    def require_pass_rates(self) -> dict[str, float]:
        """``pass_rates``, at least one. Raises DataError if there is none."""
        rates = self.pass_rates()
        if not rates:
            raise DataError(
                f"{self._key}={self.folder}: the store has no graded response, so no pass rate. Let `s2l explore` "
                "finish, with a reward that grades."
            )
        return rates

    def correct_texts(self) -> dict[str, str]:
        """The first text with full marks, by prompt id; prompts without one are left out."""
        texts = {}
        for name, prompt in self._prompts.items():
            first = min((index for index, acc in prompt.acc.items() if acc is not None and acc >= 1.0), default=None)
            if first is not None:
                texts[name] = str(self._read_row(*prompt.rows[first])["text"])
        return texts

    def _read_index(self, number: int, shard: Shard) -> None:
        with self._reading(shard) as file:
            if not file.schema_arrow.equals(SCHEMA):
                names = ", ".join(file.schema_arrow.names)
                raise _damage_error(self.folder, shard, self._key, f"has other columns: {names}")
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._group_starts.append([sum(sizes[:group]) for group in range(len(sizes))])
            columns = file.read(list(INDEX_COLUMNS)).to_pydict()
        for row, (name, index, acc, problem) in enumerate(zip(*(columns[c] for c in INDEX_COLUMNS), strict=True)):
            prompt = self._prompts[name]
            if index in prompt.rows:
                what = f"holds response {index} of prompt {name} a second time"
                raise _damage_error(self.folder, shard, self._key, what)
            prompt.rows[index], prompt.acc[index], prompt.problem = (number, row), acc, problem

    def _read_row(self, shard: int, row: int) -> dict[str, Any]:
        starts = self._group_starts[shard]
        group = bisect_right(starts, row) - 1
        found: dict[str, Any] = self._group(shard, group).slice(row - starts[group], 1).to_pylist()[0]
        return found

    def _read_group(self, shard: int, group: int) -> pa.Table:
        with self._reading(self.manifest.shards[shard]) as file:
            return file.read_row_group(group, columns=ROLLOUT_COLUMNS)

    @contextmanager
    def _reading(self, shard: Shard) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(self.folder / shard.name) as file:
                yield file
        except UNREADABLE as error:
            raise _damage_error(self.folder, shard, self._key, f"cannot be read ({reason(error)})") from None
