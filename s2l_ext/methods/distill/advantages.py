"""Rows of a step without a policy gradient: advantages of 0, and rows that the loss leaves out."""

from __future__ import annotations

import logging
from typing import Any

import torch
from tensordict import TensorDict

from s2l_ext.errors import DataError
from s2l_ext.training.outcomes import accuracy_of
from s2l_ext.training.queue import KVBatchMeta, put, response_zeros
from s2l_ext.training.step import Step

logger = logging.getLogger(__name__)


def zero_advantages(batch: KVBatchMeta) -> KVBatchMeta:
    """Give verl's metrics the fields that they read."""
    zeros = response_zeros(batch, torch.float32)
    return put(batch, TensorDict({"advantages": zeros, "returns": zeros.clone()}, batch_size=len(batch)))


def leave_out_wrong(step: Step) -> dict[str, float]:
    """For ``correct_only``: take the tokens of rows that the verifier rejects out of the loss. Raises DataError: the
    reward gave a row no ``acc``."""
    names = step.rows.names
    wrong = [name for name, extra in zip(names, step.rows.extra_B, strict=True) if not _is_right(extra)]
    if len(wrong) == len(names):
        logger.warning("s2l.distill.correct_only: no row of this step is correct, so nothing is learned from it")
    if wrong:
        zeros = response_zeros(step.batch, torch.int64, wrong)
        masks = TensorDict({"response_mask": zeros, "loss_mask": zeros.clone()}, batch_size=len(wrong))
        put(step.batch, masks, wrong)
    return {"s2l/distill/rows_kept": float(len(names) - len(wrong)), "s2l/distill/rows": float(len(names))}


def _is_right(extra_fields: dict[str, Any]) -> bool:
    acc = accuracy_of(extra_fields, strict=True)
    if acc is None:
        raise DataError(
            "s2l.distill.correct_only=True needs the verifier's correctness, but the reward function gave a row no "
            "'acc'. Return it beside 'score', or set s2l.distill.correct_only=false."
        )
    return acc > 0.5
