"""verl's TransferQueue: the only place of this package that reads and writes rows there (verl is replacing it)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta as KVBatchMeta
from verl.utils import tensordict_utils as tu

TRAIN = "train"


class RowKey(NamedTuple):
    """A row's key in the queue, ``{uid}_{session}_{output}``: prompt, number in the group, output of the session."""

    uid: str
    session: int
    output: int

    @classmethod
    def parse(cls, key: str) -> RowKey:
        uid, session, output = key.rsplit("_", 2)
        return cls(uid, int(session), int(output))


def is_padding(tag: Mapping[str, Any]) -> bool:
    """verl pads the batch to full mini-batches on every rank with copies of a row: they must count nowhere."""
    return bool(tag.get("is_padding", False))


def real_keys(batch: KVBatchMeta) -> list[str]:
    """Keys of the batch's rows without padding."""
    return [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not is_padding(tag)]


def read(batch: KVBatchMeta, fields: Sequence[str], keys: Sequence[str] | None = None) -> TensorDict:
    """Columns of the batch's rows, or of some of them. ``keys``: of the rows; None takes all, padding included."""
    wanted = batch.keys if keys is None else list(keys)
    return tq.kv_batch_get(keys=wanted, partition_id=batch.partition_id, select_fields=list(fields))


def put(batch: KVBatchMeta, fields: TensorDict, keys: Sequence[str] | None = None) -> KVBatchMeta:
    """Write columns. Returns the batch that names the new ones: workers fetch only the fields that a batch names.
    ``keys``: rows that ``fields`` is of; None is all."""
    if keys is not None:
        tq.kv_batch_put(keys=list(keys), partition_id=batch.partition_id, fields=fields)
        return batch
    extra = batch.extra_info  # what verl and methods told the workers; the batch that a put returns has none
    written = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
    written.extra_info.update(extra)
    return written


def put_values(batch: KVBatchMeta, field: str, values: Sequence[Any], keys: Sequence[str]) -> None:
    """Write a column that holds no tensors, of some rows."""
    column: Any = np.array([*values, None], dtype=object)[:-1]  # else numpy makes a matrix of lists of equal lengths
    put(batch, tu.get_tensordict({field: column}), keys)


def response_zeros(batch: KVBatchMeta, dtype: torch.dtype, keys: Sequence[str] | None = None) -> torch.Tensor:
    """Nested (B, j) zeros for the response tokens of the rows, or of some; tags have their lengths."""
    length_of = {key: int(tag["response_len"]) for key, tag in zip(batch.keys, batch.tags, strict=True)}
    lengths = torch.tensor([length_of[key] for key in (batch.keys if keys is None else keys)])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return torch.nested.nested_tensor_from_jagged(torch.zeros(int(offsets[-1]), dtype=dtype), offsets)


def waiting_prompts() -> set[str]:
    """Uids of the training prompts in verl's queue, finished or not."""
    queued = (tq.kv_list(TRAIN) or {}).get(TRAIN, {})
    return {key for key, tag in queued.items() if tag.get("is_prompt", False)}


def clear_trained_rows() -> None:
    """Clear rows whose prompt is gone: a checkpoint has those that its step trained on, which nothing else clears."""
    queued, prompts = (tq.kv_list(TRAIN) or {}).get(TRAIN, {}), waiting_prompts()
    left = [key for key in queued if key not in prompts and RowKey.parse(key).uid not in prompts]
    if left:
        tq.kv_clear(keys=left, partition_id=TRAIN)


def date_prompts(steps: Mapping[str, int], uids: Collection[str]) -> None:
    """Set the step from which verl counts a prompt's age. ``steps``: step by prompt uid. ``uids``: the prompts; others
    stay unchanged."""
    found = {uid: step for uid, step in steps.items() if uid in uids}
    if found:
        tags = [{"global_steps": step} for step in found.values()]
        tq.kv_batch_put(keys=list(found), partition_id=TRAIN, tags=tags)


@contextmanager
def dated_when_sent(trainer: Any, steps: Mapping[str, int]) -> Iterator[None]:
    """:func:`date_prompts` of all that wait, before the trainer sends any to its agent loops. Later it could not: a tag
    is read, changed and written whole, so the status that a worker writes meanwhile would be lost."""
    manager = trainer.agent_loop_manager

    def send(batch: TensorDict) -> None:
        date_prompts(steps, waiting_prompts())
        manager.generate_sequences(batch)

    trainer.agent_loop_manager = SimpleNamespace(generate_sequences=send)
    try:
        yield
    finally:
        trainer.agent_loop_manager = manager
