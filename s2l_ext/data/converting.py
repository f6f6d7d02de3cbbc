"""What the converters share: values of a row, writing parquet files all or none, counting what was dropped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ext.data import values
from s2l_ext.data.parquet_files import UNREADABLE
from s2l_ext.errors import DataError

BATCH_ROWS = 256
SOURCE_KEY = b"s2l.source"
BUCKETS = 10_000
REPEATED, REPEATED_OTHERWISE = "repeated problem", "repeated problem with another answer"


@dataclass(frozen=True)
class Row:
    """One row to write. ``trace`` is empty where there is none; all rows have a tier of one type, or none has."""

    split: str
    id: str
    index: int
    prompt: list[dict[str, str]]
    answer: str
    trace: str = ""
    tier: str | int | float | None = None


@dataclass(frozen=True)
class Source:
    """What makes rows: the command's name (``gsm8k``), verl's ``data_source``, the input files, verl's ``ability``."""

    converter: str
    data_source: str
    inputs: Sequence[Path]
    ability: str = "math"

    def __str__(self) -> str:
        names = ", ".join(sorted(path.name for path in self.inputs))
        return f"`s2l data {self.converter}` from {names} with data source {self.data_source}"


@dataclass
class Written:
    """One parquet file: where, which split, how many rows, how many of them carry a trace, and what was left out.

    Attributes:
        dropped_rows: rows left out, by reason.
        dropped_traces: traces looked at and not used, by reason; a row may have several.
        tiers: rows by tier, easiest first where the converter knows the order.
    """

    path: str
    split: str
    rows: int = 0
    with_trace: int = 0
    dropped_rows: dict[str, int] = field(default_factory=dict)
    dropped_traces: dict[str, int] = field(default_factory=dict)
    tiers: dict[Any, int] = field(default_factory=dict)

    @property
    def report(self) -> Path:
        return Path(self.path).with_suffix(".report.json")


def digest(text: str) -> str:
    """Hex SHA-256 of a text, the same for any case and spacing."""
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).hexdigest()


def index_of(text: str) -> int:
    """48 bits of the text's hash: the same in every file order, exact in a float64."""
    return int(digest(text)[:12], 16)


def split_of(text: str, name: str, val_share: float) -> str:
    """``val`` for this share of all texts, by their hash, else ``name``: disjoint whatever the order or sharding."""
    return "val" if int(digest(text)[12:24], 16) % BUCKETS < val_share * BUCKETS else name


def as_text(record: dict[str, Any], key: str, where: str) -> str:
    """A text or number of the record, as text. Raises DataError if it is missing, blank, of another type, or holds
    control characters."""
    value = record.get(key)
    number = values.plain_number(value)
    if number is not None:
        return number
    if isinstance(value, str) and value.strip():
        return values.clean_text(value, where, f"column '{key}'")
    problem = "is missing" if key not in record else f"is {values.shown(value)}, not text"
    raise DataError(f"{where}: column '{key}' {problem}. Found: {', '.join(record) or 'none'}.")


def as_answer(record: dict[str, Any], key: str, where: str) -> str:
    """The one answer of the record as exact text (:func:`values.answer_text`); ``6e4`` becomes ``60000``."""
    if key not in record:
        raise DataError(f"{where}: column '{key}' is missing. Found: {', '.join(record) or 'none'}.")
    rest = f", not text. Found: {', '.join(record)}."
    return values.without_exponent(values.answer_text(record[key], where, f"column '{key}'", rest))


@dataclass
class Repeats:
    """Rows whose problem came before in the input: dropped and counted, or all counted and then refused.

    Attributes:
        drop: keep the first of each (``--drop-repeats``).
    """

    drop: bool
    _first: dict[int, tuple[str, str]] = field(default_factory=dict)
    _message: str = ""
    _count: int = 0
    _other: int = 0

    def reason(self, index: int, where: str, answer: str, message: str) -> str | None:
        """Why this row is left out; None for the first of its problem.

        Args:
            index: hash of the problem.
            message: what to say of the first repeat; ``{first}`` is where the problem was first.
        """
        first, right = self._first.setdefault(index, (where, answer))
        if first == where:
            return None
        self._count += 1
        self._other += answer != right
        self._message = self._message or message.format(first=first)
        return REPEATED if answer == right else REPEATED_OTHERWISE

    def refuse(self) -> None:
        """Raise DataError with the number of repeats, unless they are dropped."""
        if self._count and not self.drop:
            raise DataError(
                f"{self._message} {self._count} rows are repeats, {self._other} of them with another answer. Remove "
                "them, or keep the first of each with --drop-repeats."
            )


# ---- writing ------------------------------------------------------------------------------------------------------


class Output:
    """Writes ``<folder>/<split>.parquet`` and ``<split>.report.json``. Nothing is left there if the block raises."""

    def __init__(self, folder: str | Path, source: Source, overwrite: bool = False, tiers: Sequence[str] = ()) -> None:
        """``tiers`` is the order in which reports list tiers; others follow, sorted."""
        self._folder, self._source, self._overwrite, self._order = Path(folder), source, overwrite, list(tiers)
        self._splits: dict[str, Written] = {}
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._made: list[Path] = []

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._commit()
        except BaseException:
            self._roll_back()
            raise
        if kind is not None:
            self._roll_back()

    def expect(self, *splits: str) -> None:
        """These files must be written; an existing one of another source is refused now, before the work."""
        for split in splits:
            self._of(split)

    def add(self, row: Row) -> None:
        written = self._of(row.split)
        written.rows += 1
        written.with_trace += bool(row.trace)
        if row.tier is not None:
            _count(written.tiers, row.tier)
        waiting = self._waiting.setdefault(row.split, [])
        waiting.append(self._verl_row(row))
        if len(waiting) >= BATCH_ROWS:
            self._flush(row.split)

    def drop_row(self, split: str, reason: str) -> None:
        _count(self._of(split).dropped_rows, reason)

    def drop_trace(self, split: str, reason: str) -> None:
        _count(self._of(split).dropped_traces, reason)

    @property
    def files(self) -> list[Written]:
        """What was written, by name of the split."""
        return [self._splits[split] for split in sorted(self._splits)]

    def _of(self, split: str) -> Written:
        if split not in self._splits:
            path = self._folder / f"{split}.parquet"
            self._refuse_other(path)
            self._splits[split] = Written(str(path), split)
        return self._splits[split]

    def _refuse_other(self, path: Path) -> None:
        if self._overwrite or not path.exists():
            return
        try:
            made_by = (pq.read_schema(path).metadata or {}).get(SOURCE_KEY, b"").decode()
        except UNREADABLE:
            made_by = ""
        if made_by != str(self._source):
            raise DataError(
                f"{path} exists and holds other data ({made_by or 'not known where from'}; this is {self._source}). "
                "Give another --out, or --overwrite to replace it."
            )

    def _verl_row(self, row: Row) -> dict[str, Any]:
        extra = {"index": row.index, "id": row.id, "split": row.split, "trace": row.trace}
        return {
            "data_source": self._source.data_source,
            "prompt": row.prompt,
            "ability": self._source.ability,
            "reward_model": {"style": "rule", "ground_truth": row.answer},
            "extra_info": extra,
            **({} if row.tier is None else {"tier": row.tier}),
        }

    def _flush(self, split: str) -> None:
        rows = self._waiting.pop(split, [])
        if not rows:
            return
        if split not in self._writers:
            self._make_folder()
            schema = _schema(rows[0].get("tier")).with_metadata({SOURCE_KEY: str(self._source)})
            self._writers[split] = pq.ParquetWriter(self._partial(split), schema)
        writer = self._writers[split]
        writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))

    def _make_folder(self) -> None:
        self._made += [path for path in (self._folder, *self._folder.parents) if not path.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)

    def _partial(self, split: str) -> Path:
        return self._folder / f".{split}.parquet.{os.getpid()}.partial"

    def _commit(self) -> None:
        for written in self.files:
            self._flush(written.split)
            if written.rows == 0:
                dropped = counts(written.dropped_rows) or "no row belongs to it"
                raise DataError(f"{written.path}: no rows to write ({dropped}).")
        for writer in self._writers.values():
            writer.close()
        for written in self.files:
            written.tiers = {tier: written.tiers[tier] for tier in sorted(written.tiers, key=self._rank)}
            written.dropped_rows = _most_first(written.dropped_rows)
            written.dropped_traces = _most_first(written.dropped_traces)
            os.replace(self._partial(written.split), written.path)
            written.report.write_text(json.dumps({"made_by": str(self._source), **asdict(written)}, indent=1) + "\n")

    def _rank(self, tier: Any) -> tuple[int, Any]:
        return (self._order.index(tier) if tier in self._order else len(self._order), tier)

    def _roll_back(self) -> None:
        for split, writer in self._writers.items():
            writer.close()
            self._partial(split).unlink(missing_ok=True)
        for path in self._made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _schema(tier: object) -> pa.Schema:
    text = pa.string()
    extra = [("index", pa.int64()), ("id", text), ("split", text), ("trace", text)]
    columns = [
        ("data_source", text),
        ("prompt", pa.list_(pa.struct([("role", text), ("content", text)]))),
        ("ability", text),
        ("reward_model", pa.struct([("style", text), ("ground_truth", text)])),
        ("extra_info", pa.struct(extra)),
    ]
    kinds = {str: text, int: pa.int64(), float: pa.float64()}
    return pa.schema(columns if tier is None else [*columns, ("tier", kinds[type(tier)])])


def _count(counts: dict[Any, int], key: Any) -> None:
    counts[key] = counts.get(key, 0) + 1


def _most_first(reasons: dict[str, int]) -> dict[str, int]:
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def paths_of(input: str | Path | Sequence[str | Path]) -> list[Path]:
    """One file or several, as paths."""
    return [Path(input)] if isinstance(input, str | Path) else [Path(path) for path in input]


def counts(reasons: dict[Any, int]) -> str:
    """``12 wrong answer, 3 missing``."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())
