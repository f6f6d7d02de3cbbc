"""Around verl's advantages: who shares a baseline, and importance weights of rows that the learner did not sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import response_to_nested

from s2l_ext.training.batch_fields import EXPLORER
from s2l_ext.training.queue import KVBatchMeta, put, read
from s2l_ext.training.source_statistics import truncated_importance_weights


@contextmanager
def grouped_by_source(batch: KVBatchMeta, changed: Collection[str] = ()) -> Iterator[None]:
    """verl groups rows by ``uid``; inside this block explorer and learner rows of a prompt are two groups.

    Args:
        batch: the step's rows.
        changed: prompts whose rows were not all sampled by whom the plan names. Where that leaves a source with a
            single row, which would have no baseline, the prompt's rows stay one group.
    """
    rows = read(batch, ["uid", "s2l_source"])
    uids, sources = list(rows["uid"]), list(rows["s2l_source"])
    rows_of = Counter(zip(uids, sources, strict=True))
    whole = {uid for (uid, _source), count in rows_of.items() if count == 1 and uid in changed}
    _write_uids(batch, [uid if uid in whole else f"{uid}/{source}" for uid, source in zip(uids, sources, strict=True)])
    try:
        yield
    finally:
        _write_uids(batch, uids)


def _write_uids(batch: KVBatchMeta, uids: list[str]) -> None:
    uid_B: Any = np.array(uids, dtype=object)
    put(batch, tu.get_tensordict({"uid": uid_B}), batch.keys)


def write_importance_weights(batch: KVBatchMeta, cap: float) -> tuple[KVBatchMeta, dict[str, float]]:
    """Give explorer tokens the weight ``min(pi_old / pi_explorer, cap)``; learner tokens keep exactly 1.

    The weights become verl's ``rollout_is_weights``, which its policy loss multiplies in. Returns the batch that
    names the new field (workers fetch the fields a batch names, no others), and metrics of the weights and of the
    share of tokens that the cap cut.
    """
    fields = ["old_log_probs", "rollout_log_probs", "response_mask", "s2l_source"]
    rows = read(batch, fields)
    is_explorer_B = np.array([source == EXPLORER for source in rows["s2l_source"]])
    response_mask = rows["response_mask"]
    padded = rows.select("old_log_probs", "rollout_log_probs", "response_mask").to_padded_tensor()
    log_ratio_B_T = (padded["old_log_probs"] - padded["rollout_log_probs"]).numpy()
    weights_B_T, stats = truncated_importance_weights(
        log_ratio_B_T, padded["response_mask"].numpy(), is_explorer_B, cap=cap
    )
    weights = torch.as_tensor(weights_B_T, dtype=padded["old_log_probs"].dtype)
    nested = TensorDict({"rollout_is_weights": response_to_nested(weights, response_mask)}, batch_size=len(batch))
    return put(batch, nested), stats
