"""What a curriculum needs to know of the training prompts: ids, tiers, start values, and whether the files changed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2l_ext.data.reading import open_parquet, parquet_columns, read_rows
from s2l_ext.errors import DataError
from s2l_ext.store.reader import RolloutStore

ID_DIGITS = 16
SHOWN = 3
ONE_ID = (
    "with another text: one id for two problems. Give each its own id, or remove the column of ids: the text's hash is "
    "the id then."
)


def require_enough(prompts: int, step_size: int) -> None:
    """Raise DataError unless an epoch has a step: ``step_size`` different prompts."""
    if prompts < step_size:
        raise DataError(
            f"data.train_files has {prompts} prompts, fewer than data.train_batch_size={step_size}: an epoch has whole "
            "batches only, so it would have no step. Lower data.train_batch_size or add prompts."
        )


# ---- where columns come from ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptTable:
    """Column names of the training data, and how to read one: Python values, one a row."""

    names: list[str]
    read: Callable[[str], list[Any]]

    def column(self, name: str, key: str) -> list[Any]:
        """A column that must be there; ``key`` is the setting that names it. Raises DataError with those there are."""
        if name not in self.names:
            raise DataError(
                f"{key}={name}: the training data has no column {name}. Columns: {', '.join(sorted(self.names))}."
            )
        return self.read(name)


def parquet_table(paths: Sequence[Path]) -> PromptTable:
    """Rows of the files, one after the other; as in verl's data set, a column that a file lacks is None there."""
    names = sorted({name for path in paths for name in parquet_columns(path)})
    return PromptTable(names, lambda name: [value for path in paths for value in _read_column(path, name)])


def _read_column(path: Path, name: str) -> list[Any]:
    with open_parquet(path, "Restore it from a copy.") as file:
        if name not in file.schema_arrow.names:
            return [None] * file.metadata.num_rows
        return list(file.read([name]).column(0).to_pylist())


def dataset_table(dataset: Any) -> PromptTable:
    """Rows of verl's data set, after its filters."""
    frame = getattr(dataset, "dataframe", None)
    if frame is None:
        raise DataError(
            f"data.custom_cls: {type(dataset).__name__} has no `dataframe`, which tiers and warm starts are read from."
        )
    return PromptTable(list(frame.column_names), lambda name: list(frame[name]))


# ---- ids ----------------------------------------------------------------------------------------------------------


def prompt_id(prompt: Any, extra_info: Any = None) -> str:
    """``extra_info.id`` of a row, else 16 hex digits of the SHA-256 of its chat messages (same text, same id)."""
    if isinstance(extra_info, dict) and extra_info.get("id") is not None:
        return str(extra_info["id"])
    text = json.dumps(prompt, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def prompt_ids(table: PromptTable, prompt_key: str = "prompt") -> list[str]:
    """Ids of all rows, in order. Raises DataError: one id belongs to two texts, as where two files count their rows."""
    prompts = table.column(prompt_key, "data.prompt_key")
    extra = table.read("extra_info") if "extra_info" in table.names else [None] * len(prompts)
    ids = [prompt_id(prompt, info) for prompt, info in zip(prompts, extra, strict=True)]
    first: dict[str, Any] = {}
    for row, (name, prompt) in enumerate(zip(ids, prompts, strict=True)):
        if first.setdefault(name, prompt) != prompt:
            raise DataError(f"the training data: prompt {name} of row {ids.index(name)} is also at row {row}, {ONE_ID}")
    return ids


# ---- tiers --------------------------------------------------------------------------------------------------------


def values_at(table: PromptTable, dotted: str, key: str) -> list[Any]:
    """Values of a column, or inside a struct column (``extra_info.tier``)."""
    head, *inner = dotted.split(".")
    values = table.column(head, key)
    for name in inner:
        missing = [row for row, value in enumerate(values) if not isinstance(value, dict) or name not in value]
        if missing:
            raise DataError(
                f"{key}={dotted}: {len(missing)} of {len(values)} rows have no {name} in {head}; the first is row "
                f"{missing[0]}."
            )
        values = [value[name] for value in values]
    return values


def tiers_of(table: PromptTable, column: str, order: Sequence[Any] | None) -> NDArray[np.int64]:
    """Rank of each prompt's tier, 0 = easiest, from a column with a dotted name. ``order`` lists all tiers, easiest
    first; None sorts numbers ascending.
    """
    setting = "s2l.curriculum.tier_column"
    values, key = values_at(table, column, setting), f"{setting}={column}"
    if order is None:
        odd = [each for each in values if not _is_number(each)]
        if odd:
            raise DataError(
                f"{key}: {len(odd)} of {len(values)} prompts have a tier that is no number ({_list_distinct(odd)}). "
                "List all tiers, easiest first, in s2l.curriculum.tier_order."
            )
        order = sorted(set(values))
    rank = {tier: position for position, tier in enumerate(order)}
    unknown = [value for value in values if not isinstance(value, Hashable) or value not in rank]
    if unknown:
        raise DataError(
            f"{key}: {len(unknown)} of {len(values)} prompts have a tier that s2l.curriculum.tier_order does not list: "
            f"{_list_distinct(unknown)}. Listed: {', '.join(map(str, order))}."
        )
    return np.array([rank[value] for value in values], dtype=np.int64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _list_distinct(values: Sequence[Any], limit: int = 10) -> str:
    distinct = sorted({repr(value) for value in values})
    more = f" and {len(distinct) - limit} more" if len(distinct) > limit else ""
    return ", ".join(distinct[:limit]) + more


# ---- start values -------------------------------------------------------------------------------------------------


def read_pass_rates(path: str, key: str = "s2l.curriculum.warm_start") -> dict[str, float]:
    """Pass rates by prompt id, from parquet or JSON lines with the fields ``prompt_id`` and ``pass_rate``, or from the
    folder of a store that ``s2l explore`` wrote. DataError for a rate outside [0, 1] or an id twice.
    """
    if Path(path).expanduser().is_dir():
        return RolloutStore(path, key).require_pass_rates()
    rates: dict[str, float] = {}
    for number, (name, rate) in enumerate(read_columns(path, ("prompt_id", "pass_rate"), key), start=1):
        name = str(name)
        if not _is_number(rate) or not 0.0 <= rate <= 1.0:
            raise DataError(f"{key}={path}: row {number}: pass_rate={rate!r} must be a number in [0, 1].")
        if name in rates:
            raise DataError(f"{key}={path}: row {number}: prompt_id {name!r} is there twice. Keep one row per prompt.")
        rates[name] = float(rate)
    return rates


def read_columns(path: str, names: Sequence[str], key: str) -> list[tuple[Any, ...]]:
    """The named columns of every row of a parquet or JSON lines file, at least one row."""
    try:
        return [tuple(row[name] for name in names) for _, row in read_rows(Path(path).expanduser(), names)]
    except (DataError, KeyError) as error:
        raise DataError(
            f"{key}={path}: cannot be read as rows with {', '.join(names)} ({type(error).__name__}: {error}). Use "
            "parquet or JSON lines."
        ) from None


def match_pass_rates(
    rates: dict[str, float], ids: Sequence[str], path: str, key: str = "s2l.curriculum.warm_start", strict: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions of the prompts in ``rates``, and their rates. Prompts that it leaves out keep the default.

    ``strict``: every id must be a prompt's; else, as after verl's filters, one is enough.
    """
    unknown = sorted(rates.keys() - set(ids))
    if unknown and (strict or len(unknown) == len(rates)):
        raise DataError(
            f"{key}={path}: {len(unknown)} of {len(rates)} prompt ids are not in the training data, first: "
            f"{', '.join(unknown[:SHOWN])}. The file belongs to other prompts; ids of yours look like {ids[0]}."
        )
    found = [(position, rates[name]) for position, name in enumerate(ids) if name in rates]
    positions, values = zip(*found, strict=True) if found else ((), ())
    return np.array(positions, dtype=np.int64), np.array(values, dtype=np.float64)
