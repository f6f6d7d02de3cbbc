"""Is a parquet file something verl can train on? Checked before any process starts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ext.data.parquet_files import UNREADABLE, reason, refuse_oversized
from s2l_ext.data.values import answer_fault, as_list, looks_like_a_list, text_fault
from s2l_ext.data.values import shown as _shown
from s2l_ext.errors import DataError

BATCH_ROWS = 4096
RESERVED_COLUMNS = frozenset(
    {
        "trace",
        "trajectory",
        "session_id",
        "sampling_params",
        "output",
        "validate",
        "uid",
        "global_steps",
        "prompts",
        "responses",
        "response_mask",
        "loss_mask",
        "input_ids",
        "position_ids",
        "rm_scores",
        "rollout_log_probs",
        "metrics",
        "extra_fields",
        "s2l_source",
        "s2l_explorer_slots",
        "s2l_kl_beta",
        "s2l_guided_sessions",
        "s2l_guidance_length",
        "s2l_prefix_len",
    }
)
"""verl 0.9.1 passes every column on as a keyword argument of the agent loop and then as a field of the row."""


@dataclass
class _Fault:
    """Rows of one column that fail one check: the first row (counted from 0), why, and how many."""

    column: str
    reason: Callable[[Any], str | None]
    fix: str
    first_row: int = -1
    first_reason: str = ""
    count: int = 0

    def look(self, values: list[Any], offset: int) -> None:
        for position, value in enumerate(values):
            reason = self.reason(value)
            if reason is None:
                continue
            if self.count == 0:
                self.first_row, self.first_reason = offset + position, reason
            self.count += 1


@dataclass
class _Scan:
    rows: int = 0
    faults: list[_Fault] = field(default_factory=list)


def check_parquet(
    path: str | Path,
    prompt_key: str = "prompt",
    answer: Sequence[str] = ("reward_model", "ground_truth"),
    max_rows: int | None = None,
    one_answer: bool = False,
) -> int:
    """Check that every row has a chat prompt and a ground truth. Memory is bounded by one batch of rows.

    Args:
        path: a parquet file in verl's layout.
        prompt_key: column that holds a list of ``{role, content}`` messages (``data.prompt_key``).
        answer: path to the ground truth: a column, then the keys inside it.
        max_rows: look at the first rows only; None looks at all.
        one_answer: the reward compares with one text: a list of several answers or a record is refused.

    Returns:
        The number of rows looked at.

    Raises:
        DataError: naming the file, the first bad row (counted from 0), the column, how many rows are bad, and the fix.
    """
    path = Path(path)
    with _open(path) as file:
        _require_columns(path, file.schema_arrow, prompt_key, answer)
        _refuse_reserved(path, file.schema_arrow.names)
        try:
            scan = _scan(file, prompt_key, answer, max_rows, one_answer)
        except UNREADABLE as error:
            raise _unreadable(path, error) from error
    for fault in scan.faults:
        if fault.count:
            raise DataError(
                f"{path}: row {fault.first_row}, column '{fault.column}': {fault.first_reason} "
                f"({fault.count} of {scan.rows} rows). {fault.fix}"
            )
    return scan.rows


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DataError(f"{path}: no such file. Check data.train_files and data.val_files.")
    try:
        file = pq.ParquetFile(path)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    try:
        refuse_oversized(file, path)
    except DataError:
        file.close()
        raise
    if file.metadata.num_rows == 0:
        file.close()
        raise DataError(f"{path}: the file has no rows. Write at least one prompt with its ground truth.")
    return file


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: not a readable parquet file ({reason(error)}). `s2l data gsm8k` writes parquet from JSONL."
    )


def _require_columns(path: Path, schema: pa.Schema, prompt_key: str, answer: Sequence[str]) -> None:
    _require(path, prompt_key, schema.names, "column", "data.prompt_key names the prompt column")
    _require(path, answer[0], schema.names, "column", "verl reads the ground truth from it")
    kind = schema.field(answer[0]).type
    for depth, key in enumerate(answer[1:], start=1):
        where = ".".join(answer[:depth])
        if not pa.types.is_struct(kind):
            raise DataError(f"{path}: column '{where}' holds {kind}, not a record with a '{key}' field.")
        names = [kind.field(index).name for index in range(kind.num_fields)]
        _require(path, key, names, f"column '{where}': field", "verl reads the ground truth from it")
        kind = kind.field(key).type


def _refuse_reserved(path: Path, columns: list[str]) -> None:
    taken = sorted(RESERVED_COLUMNS & set(columns))
    if taken:
        raise DataError(
            f"{path}: column '{taken[0]}' has a name that verl uses itself: it passes columns on as keyword arguments "
            f"of the agent loop. Rename {', '.join(taken)}, or move the values into extra_info."
        )


def _require(path: Path, name: str, found: list[str], what: str, why: str) -> None:
    if name in found:
        return
    nearest = difflib.get_close_matches(name, found, n=1, cutoff=0.4)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise DataError(f"{path}: {what} '{name}' is missing ({why}). Found: {', '.join(found) or 'none'}.{hint}")


def _scan(
    file: pq.ParquetFile, prompt_key: str, answer: Sequence[str], max_rows: int | None, one_answer: bool
) -> _Scan:
    prompt = _Fault(prompt_key, _prompt_problem, "A prompt is a list of {role, content} messages.")
    truth = _Fault(
        ".".join(answer),
        _one_answer_problem if one_answer else answer_fault,
        "Every row needs the answer that the reward function compares with.",
    )
    scan = _Scan(faults=[prompt, truth])
    leaf = ".".join(answer)
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[prompt_key, leaf]):
        if max_rows is not None:
            batch = batch.slice(0, max_rows - scan.rows)
        if batch.num_rows == 0:
            break
        prompt.look(batch.column(prompt_key).to_pylist(), scan.rows)
        truth.look([_at(value, answer[1:]) for value in batch.column(answer[0]).to_pylist()], scan.rows)
        scan.rows += batch.num_rows
    return scan


def _at(value: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        if value is None:
            return None
        value = value[key]
    return value


def _prompt_problem(value: Any) -> str | None:
    if not isinstance(value, list):
        written = ", the list written as JSON text: json.loads it" if looks_like_a_list(str(value)) else ""
        return f"the prompt is {_describe(value)}, not a list of messages{written}"
    if not value:
        return "the prompt is an empty list"
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            return f"a message is {_describe(message)}, not {{role, content}}"
        if not message["role"] or not message["content"]:
            return f"a message has an empty role or content: {_describe(message)}"
        fault = text_fault(message["content"], latex_only=True) if isinstance(message["content"], str) else None
        if fault:
            return f"a message {fault}"
    return None


def _one_answer_problem(value: Any) -> str | None:
    items = as_list(value)
    if items is not None and len(items) > 1:
        return f"the ground truth is a list of {len(items)} answers, {_shown(items)}, and the reward compares with one"
    if isinstance(value if items is None else next(iter(items), None), dict | list):
        return f"the ground truth is {_describe(value)}, not text"
    return answer_fault(value)


def _describe(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"
