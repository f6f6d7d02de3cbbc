"""Rows of a step without a policy gradient: advantages of 0, and rows that the loss leaves out."""

from __future__ import annotations

import logging
from typing import Any

import torch
from tensordict import TensorDict

from s2l_ext.errors import DataError
from s2l_ext.training.outcomes import accuracy_of
from s2l_ext.training.queue import KVBatchMeta, is_padding, put, read

logger = logging.getLogger(__name__)


def zero_advantages(batch: KVBatchMeta) -> KVBatchMeta:
    """Give verl's metrics the fields that they read."""
    rows = read(batch, ["response_mask"])
    zeros = torch.nested.nested_tensor_from_jagged(
        torch.zeros_like(rows["response_mask"].values(), dtype=torch.float32), rows["response_mask"].offsets()
    )
    return put(batch, TensorDict({"advantages": zeros, "returns": zeros.clone()}, batch_size=len(batch)))


def leave_out_wrong(batch: KVBatchMeta) -> tuple[KVBatchMeta, dict[str, float]]:
    """For ``correct_only``: take the tokens of rows that the verifier rejects out of the loss.

    Raises:
        DataError: the reward gave a row no ``acc``.
    """
    rows = read(batch, ["response_mask", "extra_fields"])
    right = [_is_right(extra) for extra in rows["extra_fields"]]
    lengths = rows["response_mask"].offsets().diff()
    keep = torch.repeat_interleave(torch.tensor(right, dtype=rows["response_mask"].dtype), lengths.cpu())
    mask = torch.nested.nested_tensor_from_jagged(
        rows["response_mask"].values() * keep.to(rows["response_mask"].device), rows["response_mask"].offsets()
    )
    if not any(right):
        logger.warning("s2l.distill.correct_only: no row of this step is correct, so nothing is learned from it")
    real = [is_right for is_right, tag in zip(right, batch.tags, strict=True) if not is_padding(tag)]
    batch = put(batch, TensorDict({"response_mask": mask, "loss_mask": mask.clone()}, batch_size=len(batch)))
    return batch, {"s2l/distill/rows_kept": float(sum(real)), "s2l/distill/rows": float(len(real))}


def _is_right(extra_fields: dict[str, Any]) -> bool:
    acc = accuracy_of(extra_fields, strict=True)
    if acc is None:
        raise DataError(
            "s2l.distill.correct_only=True needs the verifier's correctness, but the reward function gave a row no "
            "'acc'. Return it beside 'score', or set s2l.distill.correct_only=false."
        )
    return acc > 0.5
