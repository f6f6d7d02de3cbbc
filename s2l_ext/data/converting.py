"""What the converters of ``s2l data`` share: their options, repeated rows, and parquet files written all or none."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ext.data import reading, values
from s2l_ext.data.hub import local_file
from s2l_ext.data.out_folder import (
    ORIGIN_KEY,
    SOURCE_KEY,
    nearest_folder,
    origin_of,
    refuse_other,
    require_file_name,
)
from s2l_ext.errors import DataError
from s2l_ext.utils.files import writable

BATCH_ROWS = 256
BUCKETS = 10_000
REPEATED, REPEATED_OTHERWISE = "repeated problem", "repeated problem with another answer"
NO_TRACE, BROKEN = "no usable trace", "control character inside"
KEEP_OR_DROP = ("keep", "drop")


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


@dataclass
class ConversionReport:
    """One parquet file: where, which split, how many rows, how many of them carry a trace, and what was left out by
    reason. A row may have several dropped traces.
    """

    path: str
    split: str
    rows: int = 0
    with_trace: int = 0
    dropped_rows: dict[str, int] = field(default_factory=Counter)
    dropped_traces: dict[str, int] = field(default_factory=Counter)
    tiers: dict[Any, int] = field(default_factory=Counter)

    @property
    def report(self) -> Path:
        return Path(self.path).with_suffix(".report.json")


# ---- a converter --------------------------------------------------------------------------------------------------


def option(default: Any, help: str, **more: Any) -> Any:
    """A field of a :class:`Converter`: an option of its command. ``more`` is argparse's, and ``flag`` where it is not
    the field's name.
    """
    return field(default=default, metadata={"help": help, **more})


WITHOUT_TRACE: dict[str, Any] = {
    "help": "rows without a usable trace: keep them with an empty one, or leave them out",
    "choices": KEEP_OR_DROP,
}
VAL_SHARE: dict[str, Any] = {
    "help": "share of the rows for val.parquet, chosen by a hash of the problem",
    "type": float,
    "metavar": "X",
}
DROP_REPEATS = "keep the first row of a repeated problem, and count the others"


@dataclass(frozen=True)
class Converter(ABC):
    """Makes verl parquet of published rows by ``s2l data <command>``. The fields of a subclass are the options of its
    command.

    ``data_source`` is verl's name for the data, ``name`` that of split and file (None where the rows say it).
    ``columns`` are those of parquet to read, ``tiers`` the order in which reports list them.
    """

    command: ClassVar[str]
    ability: ClassVar[str] = "math"
    columns: ClassVar[Sequence[str] | None] = None
    tiers: ClassVar[Sequence[str]] = ()
    data_source: str = option(MISSING, "verl's data_source: a name for this data")
    name: str | None = option("train", "split and file name")

    @property
    def mathematical(self) -> bool:
        """The answers are for the mathematical reward; the command prints what that reads of them."""
        return self.ability == "math"

    @abstractmethod
    def rows(self, records: Records, out: Output) -> Iterable[Row]:
        """The rows to write, of the records of all files; what is left out is counted in ``out``."""

    def check(self) -> None:
        """Raise DataError for options that cannot be."""
        for item in fields(self):
            value, choices = getattr(self, item.name), item.metadata.get("choices")
            if choices and value not in choices:
                raise DataError(f"{item.name}={value!r}: choose one of {', '.join(choices)}.")
        if self.name is not None:
            require_file_name(self.name, "--name")
        share = self._val_share
        if not 0 <= share < 1:
            raise DataError(f"--val-share {share} must be in [0, 1).")
        if share and self.name == "val":
            raise DataError("--val-share takes val.parquet from the other rows: it needs another --name than val.")

    def convert(
        self,
        input: str | Path | Sequence[str | Path],
        output: str | Path,
        limit: int | None = None,
        overwrite: bool = False,
        progress: bool = False,
    ) -> list[ConversionReport]:
        """Write ``<output>/<split>.parquet`` and a report beside it. Nothing is written when a row is bad, which
        DataError says.

        ``input`` is files of JSON lines (gzipped or not) or parquet, or ``hf://owner/name[:config][@split]``; shards of
        one data set in any order. ``limit`` counts in every input file. ``overwrite`` replaces files that hold other
        data.
        """
        self.check()
        given = [input] if isinstance(input, str | Path) else input
        files = [local_file(path, "--input") for path in given]
        with Output(output, self, files, overwrite) as out:
            for split in filter(None, [self.name, "val" if self._val_share else None]):
                out.report(split)
            for row in self.rows(self._records(files, limit, progress), out):
                out.add(row)
            if not getattr(self, "drop_repeats", True):
                out.refuse_repeats()
            return out.commit()

    def _records(self, files: Sequence[Path], limit: int | None, progress: bool) -> Records:
        for path in files:
            self.check_file(path)
            for where, record in reading.read_rows(path, self.columns, limit, progress):
                yield path, where, record

    def check_file(self, path: Path) -> None:  # noqa: B027 - most converters read every file
        """Raise DataError for a file that none of whose rows can be used."""

    def split_of(self, text: str) -> str:
        """``val`` for ``val_share`` of all texts, by their hash, else ``name``: disjoint in any order or sharding."""
        return "val" if int(digest(text)[12:24], 16) % BUCKETS < self._val_share * BUCKETS else str(self.name)

    @property
    def _val_share(self) -> float:
        return float(getattr(self, "val_share", 0.0))


Records = Iterator[tuple[Path, str, dict[str, Any]]]
"""File, ``file:line`` and columns of each row."""


def digest(text: str) -> str:
    """Hex SHA-256 of a text, the same for any case and spacing."""
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).hexdigest()


def index_of(text: str) -> int:
    """48 bits of the text's hash: the same in every file order, exact in a float64."""
    return int(digest(text)[:12], 16)


def user_prompt(text: str, instruction: str) -> list[dict[str, str]]:
    """The text and, on a line of its own, the instruction if there is one, as one message."""
    return [{"role": "user", "content": f"{text}\n{instruction}" if instruction else text}]


def as_text(record: dict[str, Any], key: str, where: str) -> str:
    """A text or number of the record, as text. Raises DataError if it is missing, blank, of another type, or holds
    control characters."""
    return values.exact_text(*_column(record, key, where))


def as_answer(record: dict[str, Any], key: str, where: str) -> str:
    """The one answer of the record as exact text (:func:`values.answer_text`); ``6e4`` becomes ``60000``."""
    return values.without_exponent(values.answer_text(*_column(record, key, where)))


def _column(record: dict[str, Any], key: str, where: str) -> tuple[Any, str, str, str]:
    """Value, place, name and the end of the message about a value of another type."""
    if key not in record:
        raise DataError(f"{where}: column '{key}' is missing. Found: {', '.join(record) or 'none'}.")
    return record[key], where, f"column '{key}'", f", not text. Found: {', '.join(record)}."


# ---- writing ------------------------------------------------------------------------------------------------------


class Output:
    """Writes ``<folder>/<split>.parquet`` and ``<split>.report.json`` when it is committed, and nothing before."""

    def __init__(self, folder: str | Path, converter: Converter, files: Sequence[Path], overwrite: bool) -> None:
        self._folder, self._converter, self._overwrite = Path(folder), converter, overwrite
        names = ", ".join(sorted(path.name for path in files))
        self._source = f"`s2l data {converter.command}` from {names} with data source {converter.data_source}"
        self._there = nearest_folder(self._folder)
        self._fix = f"Free disk space, or choose another --out than {self._folder}."
        self._origin = origin_of(converter.command, converter.data_source, files)
        self._splits: dict[str, ConversionReport] = {}
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._first: dict[int, tuple[str, str]] = {}
        self._ids: dict[str, str] = {}
        self._repeats, self._other_repeats, self._message = 0, 0, ""
        with writable(self._there, self._fix):
            self._stage = TemporaryDirectory(prefix=".s2l-data-", dir=self._there)  # on the disk of the folder

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            with suppress(OSError):  # committed files are closed already
                writer.close()
        self._stage.cleanup()

    def add(self, row: Row) -> None:
        report = self.report(row.split)
        report.rows += 1
        report.with_trace += bool(row.trace)
        if row.tier is not None:
            report.tiers[row.tier] += 1
        waiting = self._waiting.setdefault(row.split, [])
        waiting.append(
            {
                "data_source": self._converter.data_source,
                "prompt": row.prompt,
                "ability": self._converter.ability,
                "reward_model": {"style": "rule", "ground_truth": row.answer},
                "extra_info": {"index": row.index, "id": row.id, "split": row.split, "trace": row.trace},
                **({} if row.tier is None else {"tier": row.tier}),
            }
        )
        if len(waiting) >= BATCH_ROWS:
            self._flush(row.split)

    def drops_repeat(self, split: str, index: int, where: str, answer: str, message: str = "") -> bool:
        """Whether the row's problem came before; such a row is counted, and refused at the end unless repeats may be.

        ``index`` is the problem's hash. ``message`` tells of the first repeat; its ``{first}`` is where the problem was
        first.
        """
        first, right = self._first.setdefault(index, (where, answer))
        if first == where:
            return False
        self._repeats += 1
        self._other_repeats += answer != right
        self._message = self._message or message.replace("{first}", first)
        self.drop_row(split, REPEATED if answer == right else REPEATED_OTHERWISE)
        return True

    def refuse_repeats(self) -> None:
        """Raise DataError with the number of repeats, if there are any."""
        if self._repeats:
            raise DataError(
                f"{self._message} {self._repeats} rows are repeats, {self._other_repeats} of them with another answer. "
                "Remove them, or keep the first of each with --drop-repeats."
            )

    def require_new_id(self, identity: str, where: str, what: str = "id") -> None:
        """Raise DataError for an id that another row has."""
        first = self._ids.setdefault(identity, where)
        if first != where:
            raise DataError(f"{where}: {what} '{identity}' is also at {first}. Ids must be unique.")

    def drop_row(self, split: str, reason: str) -> None:
        self.report(split).dropped_rows[reason] += 1

    def drop_trace(self, split: str, reason: str) -> None:
        self.report(split).dropped_traces[reason] += 1

    def report(self, split: str) -> ConversionReport:
        """The counts of a file that must be written; an existing one of another source is refused."""
        if split not in self._splits:
            path = self._folder / f"{split}.parquet"
            if not self._overwrite:
                refuse_other(path, self._source, self._origin)
            self._splits[split] = ConversionReport(str(path), split)
        return self._splits[split]

    def commit(self) -> list[ConversionReport]:
        """Put the files in their places; by name of the split. Raises DataError for a file without rows."""
        reports = [self._splits[split] for split in sorted(self._splits)]
        for report in reports:
            self._flush(report.split)
            if report.rows == 0:
                dropped = counted(report.dropped_rows) or "no row belongs to it"
                raise DataError(f"{report.path}: no rows to write ({dropped}).")
        for report in reports:
            self._sort(report)
        with writable(self._folder, self._fix):
            self._put(reports)
        return reports

    def _sort(self, report: ConversionReport) -> None:
        order = list(self._converter.tiers)
        in_order = sorted(report.tiers, key=lambda tier: (order.index(tier) if tier in order else len(order), tier))
        report.tiers = {tier: report.tiers[tier] for tier in in_order}
        report.dropped_rows = _most_first(report.dropped_rows)
        report.dropped_traces = _most_first(report.dropped_traces)

    def _put(self, reports: Sequence[ConversionReport]) -> None:
        for report in reports:
            self._writers[report.split].close()
        for report in reports:
            os.replace(self._staged(report.split), report.path)
            report.report.write_text(json.dumps({"made_by": self._source, **asdict(report)}, indent=1) + "\n")

    def _flush(self, split: str) -> None:
        rows = self._waiting.pop(split, [])
        if not rows:
            return
        with writable(self._there, self._fix):
            if split not in self._writers:
                marks = {SOURCE_KEY: self._source, ORIGIN_KEY: self._origin}
                schema = _schema(rows[0].get("tier")).with_metadata(marks)
                self._writers[split] = pq.ParquetWriter(self._staged(split), schema)
            writer = self._writers[split]
            writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))

    def _staged(self, split: str) -> Path:
        return Path(self._stage.name) / f"{split}.parquet"


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


def _most_first(reasons: dict[str, int]) -> dict[str, int]:
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def counted(reasons: dict[Any, int]) -> str:
    """``12 wrong answer, 3 missing``."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())
