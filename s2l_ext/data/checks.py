"""Is a parquet file something verl can train on? Checked before any process starts."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ext.data.reading import open_parquet
from s2l_ext.data.values import answer_fault, looks_like_a_list, shown, text_fault
from s2l_ext.errors import DataError

BATCH_ROWS = 4096
TRUTH, SOURCE = "reward_model.ground_truth", "data_source"
JSON_LINES = (".json", ".jsonl")
ANSWER_FIX = "Every row needs the answer that the reward function compares with."
RESERVED_COLUMNS = frozenset(
    [
        *("trace", "trajectory", "session_id", "sampling_params", "output", "validate", "uid", "global_steps"),
        *("prompts", "responses", "response_mask", "loss_mask", "input_ids", "position_ids", "rm_scores"),
        *("rollout_log_probs", "metrics", "extra_fields", "s2l_source", "s2l_explorer_slots", "s2l_kl_beta"),
        *("s2l_guided_sessions", "s2l_guidance_length", "s2l_prefix_len"),
    ]
)
"""verl 0.9.1 passes every column on as a keyword argument of the agent loop and then as a field of the row."""


def check_parquet(
    path: str | Path, prompt_key: str = "prompt", max_rows: int | None = None, one_answer: bool = False
) -> int:
    """Check that every row has a chat prompt and a ground truth; the number of checked rows. Memory is bounded by one
    batch.

    ``one_answer``: the reward compares with one text, so a list of several answers or a record is refused. DataError
    names the first bad row (from 0), the column, how many rows are bad, and the fix.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file. Check data.train_files and data.val_files.")
    number, first, count = -1, dict[str, tuple[int, str]](), Counter[str]()
    with open_parquet(path, "`s2l data gsm8k` writes parquet from JSONL.") as file:
        if file.metadata.num_rows == 0:
            raise DataError(f"{path}: the file has no rows. Write at least one prompt with its ground truth.")
        _require_columns(path, file.schema_arrow, prompt_key)
        _refuse_reserved(path, file.schema_arrow.names)
        for number, (prompt, truth) in enumerate(islice(_read_pairs(file, prompt_key), max_rows)):
            for name, fault in ((prompt_key, _prompt_fault(prompt)), (TRUTH, answer_fault(truth, one_answer))):
                if fault is not None:
                    first.setdefault(name, (number, fault))
                    count[name] += 1
    for name in [name for name in (prompt_key, TRUTH) if name in first]:
        fix = ANSWER_FIX if name == TRUTH else "A prompt is a list of {role, content} messages."
        row, fault = first[name]
        fault = f"the ground truth {fault}" if name == TRUTH else fault
        raise DataError(f"{path}: row {row}, column '{name}': {fault} ({count[name]} of {number + 1} rows). {fix}")
    return number + 1


def check_first_line(path: Path, prompt_key: str) -> None:
    """Raises DataError for JSON lines that are not in verl's layout, such as those of a published benchmark."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        try:
            first = json.loads(next(lines, ""))
        except ValueError:
            return  # one document over several lines, which verl reads too
    if isinstance(first, dict) and prompt_key not in first:
        raise DataError(
            f"{path}: line 1 has {', '.join(first)} and no '{prompt_key}' (data.prompt_key). verl reads rows of chat "
            "messages: make them with `s2l data gsm8k`, `s2l data humaneval` or `s2l data jsonl` (docs/data.md)."
        )


def check_alike(files: Sequence[Path]) -> None:
    """Raises DataError where a column has another type in another of the files, which verl could not join."""
    if len(files) < 2:
        return
    from datasets import Features, Value

    seen: dict[str, tuple[Path, Any]] = {}
    for path in files:
        for name, kind in Features.from_arrow_schema(pq.read_schema(path)).items():
            first, its = seen.setdefault(name, (path, kind))
            if kind != its and Value("null") not in (kind, its):
                raise DataError(
                    f"column '{name}' is {its} in {first} and {kind} in {path}, and verl cannot join the "
                    "two files. Write it with one type."
                )


def require_sources(files: Sequence[Path]) -> None:
    """Raises DataError for a file without the column by which verl's reward managers choose a reward."""
    for path in files:
        if SOURCE not in pq.read_schema(path).names:
            raise DataError(f"{path}: no column '{SOURCE}', which verl's reward managers read of every row. Add it.")


def _read_pairs(file: pq.ParquetFile, prompt_key: str) -> Iterator[tuple[Any, Any]]:
    """Prompt and ground truth of every row."""
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[prompt_key, TRUTH]):
        models = batch.column("reward_model").to_pylist()
        truths = (None if model is None else model["ground_truth"] for model in models)
        yield from zip(batch.column(prompt_key).to_pylist(), truths, strict=True)


def _require_columns(path: Path, schema: pa.Schema, prompt_key: str) -> None:
    _require(path, prompt_key, schema.names, "column", "data.prompt_key names the prompt column")
    _require(path, "reward_model", schema.names, "column", "verl reads the ground truth from it")
    kind = schema.field("reward_model").type
    if not pa.types.is_struct(kind):
        raise DataError(f"{path}: column 'reward_model' holds {kind}, not a record with a 'ground_truth' field.")
    names = [field.name for field in kind]
    _require(path, "ground_truth", names, "column 'reward_model': field", "verl reads the ground truth from it")


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


def _prompt_fault(value: Any) -> str | None:
    if not isinstance(value, list):
        written = ", the list written as JSON text: json.loads it" if looks_like_a_list(str(value)) else ""
        return f"the prompt is {_type_and_value(value)}, not a list of messages{written}"
    if not value:
        return "the prompt is an empty list"
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            return f"a message is {_type_and_value(message)}, not {{role, content}}"
        if not message["role"] or not message["content"]:
            return f"a message has an empty role or content: {_type_and_value(message)}"
        fault = text_fault(message["content"], latex_only=True) if isinstance(message["content"], str) else None
        if fault:
            return f"a message {fault}"
    return None


def _type_and_value(value: Any) -> str:
    return f"{type(value).__name__} {shown(value)}"
