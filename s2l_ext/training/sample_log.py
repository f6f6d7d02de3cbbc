"""``samples.jsonl``: whole groups of every step, to read what was sampled, by whom, and what it was judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from s2l_ext.training.batch_fields import LEARNER, PREFIX_FIELD, SOURCE_FIELD
from s2l_ext.training.outcomes import accuracy_of
from s2l_ext.training.queue import KVBatchMeta, RowKey, read

FILE_NAME = "samples.jsonl"
MOST_CHARACTERS = 20_000
"""Of a response; what is longer keeps its two ends."""


def sample_rows(
    batch: KVBatchMeta,
    uids: Sequence[str],
    tokenizer: Any,
    with_sources: bool,
    with_prefix: bool,
    most: int | None = None,
) -> list[dict[str, Any]]:
    """The rows of the prompts ``uids`` as text, by session; with ``most``, of the first so many that have rows, because
    verl drops groups that ``algorithm.filter_groups`` leaves out. Rows carry their source (else all are the learner's)
    and the number of their guidance tokens where ``with_sources`` and ``with_prefix`` say so."""
    trained = {RowKey.parse(name).uid for name in batch.keys}
    wanted = set([uid for uid in uids if uid in trained][:most])
    keys = sorted((name for name in batch.keys if RowKey.parse(name).uid in wanted), key=RowKey.parse)
    if not keys:
        return []
    fields = ["prompts", "responses", "rm_scores", "extra_fields", "reward_model"]
    fields += [SOURCE_FIELD] * with_sources + [PREFIX_FIELD] * with_prefix
    rows = read(batch, fields, keys)
    columns = {name: list(rows[name].unbind() if torch.is_tensor(rows[name]) else rows[name]) for name in fields}
    each = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [_describe_row(key, row, tokenizer) for key, row in zip(keys, each, strict=True)]


def _describe_row(key: str, row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    uid, session, output = RowKey.parse(key)
    placed, response = int(row.get(PREFIX_FIELD, 0)) if output == 0 else 0, row["responses"].tolist()
    truth = (_unwrap(row["reward_model"]) or {}).get("ground_truth")
    return {
        "uid": uid,
        "session": session,
        "source": str(row.get(SOURCE_FIELD, LEARNER)),
        "prompt": tokenizer.decode(row["prompts"].tolist(), skip_special_tokens=True),
        "guidance": tokenizer.decode(response[:placed], skip_special_tokens=True),
        "response": shortened(tokenizer.decode(response[placed:], skip_special_tokens=True)),
        "score": float(row["rm_scores"].sum()),
        "acc": accuracy_of(_unwrap(row["extra_fields"]) or {}, strict=False),
        "ground_truth": None if truth is None else str(truth),
    }


def _unwrap(value: Any) -> Any:
    return getattr(value, "data", value)


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """``text``, or its two ends with the number of characters left out between."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"
