"""Held-out accuracy by tier and level, where the validation files have such a column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from s2l_ext.evaluation.benchmarks import GROUP_COLUMNS, groups_of
from s2l_ext.evaluation.intervals import mean_interval
from s2l_ext.evaluation.metrics import numbers_first
from s2l_ext.report.held_out import HeldOut
from s2l_ext.report.page import table

MOST_PAIRS = 4_000_000
"""Prompts of a dump times rows of the files: which row a prompt is, is found by its text."""
READING = (
    "First and last validation, each over the problems of one group, with 95 % intervals over problems. A problem is "
    "in no group where its row has none, or where two rows of the files have its text."
)


def figures(runs: Sequence[HeldOut]) -> list[Markup]:
    """One table for each column; none without dumps, or without such a column."""
    found = [(held_out, groups(held_out)) for held_out in runs if held_out.dumps]
    tables = [
        (column, [row for one in found for row in _rows_of_run(*one, column, len(runs) > 1)])
        for column in GROUP_COLUMNS
    ]
    own = ["run"] if len(runs) > 1 else []
    return [
        table(f"Held-out accuracy by {column}", [*own, column, "problems", "first", "last"], rows, READING)
        for column, rows in tables
        if rows
    ]


def groups(held_out: HeldOut) -> dict[str, dict[str, str]]:
    """By prompt of the last dump that is the run's own, its tier and level."""
    prompts, rows = held_out.accuracies(max(held_out.dumps)), _groups_by_text(held_out)
    if not rows or len(rows) * len(prompts) > MOST_PAIRS:
        return {}
    found = {}
    for prompt in prompts:
        inside = [text for text in rows if text in prompt]
        if inside:
            found[prompt] = rows[max(inside, key=len)]
    return found


def _groups_by_text(held_out: HeldOut) -> dict[str, dict[str, str]]:
    """Groups by the text of a row's last message; a text of two rows with other groups has none."""
    rows: dict[str, dict[str, str]] = {}
    for file in filter(None, held_out.validation_files):
        for text, group in _read_groups(file):
            rows[text] = group if rows.get(text, group) == group else {}
    return rows if any(rows.values()) else {}


def _read_groups(file: Path) -> list[tuple[str, dict[str, str]]]:
    try:
        names = pq.read_schema(file).names
        wanted = [name for name in ("prompt", "extra_info", *GROUP_COLUMNS) if name in names]
        return [_text_and_group(row) for row in pq.read_table(file, columns=wanted).to_pylist()]
    except (OSError, KeyError, TypeError, IndexError, pa.ArrowException):
        return []


def _text_and_group(row: dict[str, Any]) -> tuple[str, dict[str, str]]:
    return str(row["prompt"][-1]["content"]), {**groups_of(row.get("extra_info") or {}), **groups_of(row)}


def _rows_of_run(held_out: HeldOut, known: dict[str, dict[str, str]], column: str, several: bool) -> list[list[str]]:
    dumps = [held_out.accuracies(step) for step in (min(held_out.dumps), max(held_out.dumps))]
    names = sorted({group[column] for group in known.values() if column in group}, key=numbers_first)
    rows = []
    for name in names:
        prompts = [prompt for prompt, group in known.items() if group.get(column) == name]
        shown = [_describe(dump, prompts) for dump in dumps]
        rows.append([*([held_out.run.name] if several else []), name, str(len(prompts)), *shown])
    return rows


def _describe(accuracies: dict[str, float], prompts: Sequence[str]) -> str:
    values = [accuracies[prompt] for prompt in prompts if prompt in accuracies]
    if not values:
        return "—"
    interval = mean_interval(values)
    ends = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
    return f"{sum(values) / len(values):.3f}{ends}"
