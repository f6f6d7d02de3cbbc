"""Around verl's advantage computation: who shares a baseline, importance weights, and who is taken for the sampler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl import DataProto
from verl.utils import tensordict_utils as tu
from verl.utils.debug.metrics import calculate_debug_metrics
from verl.workers.utils.padding import response_to_nested

from s2l_ext.training.batch_fields import PREFIX_FIELD
from s2l_ext.training.row_metrics import prefix_lengths
from s2l_ext.training.source_statistics import truncated_importance_weights
from s2l_ext.training.sources import EXPLORER


@contextmanager
def grouped_by_source(batch: KVBatchMeta, changed: Collection[str] = ()) -> Iterator[None]:
    """verl groups rows by ``uid``; inside this block explorer and learner rows of a prompt are two groups.

    Args:
        batch: the step's rows.
        changed: prompts whose rows were not all sampled by whom the plan names. Where that leaves a source with a
            single row, which would have no baseline, the prompt's rows stay one group.
    """
    rows = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["uid", "s2l_source"])
    uids, sources = list(rows["uid"]), list(rows["s2l_source"])
    rows_of = Counter(zip(uids, sources, strict=True))
    whole = {uid for (uid, _source), count in rows_of.items() if count == 1 and uid in changed}
    _put_uids(batch, [uid if uid in whole else f"{uid}/{source}" for uid, source in zip(uids, sources, strict=True)])
    try:
        yield
    finally:
        _put_uids(batch, uids)


def _put_uids(batch: KVBatchMeta, uids: list[str]) -> None:
    tq.kv_batch_put(
        keys=batch.keys,
        partition_id=batch.partition_id,
        fields=tu.get_tensordict({"uid": np.array(uids, dtype=object)}),
    )


def write_importance_weights(batch: KVBatchMeta, cap: float) -> tuple[KVBatchMeta, dict[str, float]]:
    """Give explorer tokens the weight ``min(pi_old / pi_explorer, cap)``; learner tokens keep exactly 1.

    The weights become verl's ``rollout_is_weights``, which its policy loss multiplies in. Returns the batch that
    names the new field (workers fetch the fields a batch names, no others), and metrics of the weights and of the
    share of tokens that the cap cut.
    """
    fields = ["old_log_probs", "rollout_log_probs", "response_mask", "s2l_source"]
    rows = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    is_explorer_B = np.array([source == EXPLORER for source in rows["s2l_source"]])
    response_mask = rows["response_mask"]
    padded = rows.select("old_log_probs", "rollout_log_probs", "response_mask").to_padded_tensor()
    log_ratio_B_T = (padded["old_log_probs"] - padded["rollout_log_probs"]).numpy()
    weights_B_T, stats = truncated_importance_weights(
        log_ratio_B_T, padded["response_mask"].numpy(), is_explorer_B, cap=cap
    )
    weights = torch.as_tensor(weights_B_T, dtype=padded["old_log_probs"].dtype)
    nested = TensorDict({"rollout_is_weights": response_to_nested(weights, response_mask)}, batch_size=len(batch))
    return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=nested), stats


def take_guidance_for_the_learners(batch: KVBatchMeta) -> dict[str, float]:
    """Give guidance tokens that the loss reads the learner's old log-probabilities as behaviour log-probabilities.

    They were placed, not sampled, and left the worker as 0. verl would read that as a sampler that was certain of them,
    and weigh or reject whole rows for it. Must come before verl's advantages, which apply its rollout correction.

    Returns:
        verl's metrics of how far sampler and learner are apart, over the tokens that were sampled; none where no row
        has guidance.
    """
    fields = ["old_log_probs", "rollout_log_probs"]
    keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    rows = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=[*fields, PREFIX_FIELD])
    prefix_B = prefix_lengths(keys, rows[PREFIX_FIELD])
    found = zip(keys, prefix_B, rows["old_log_probs"].unbind(), rows["rollout_log_probs"].unbind(), strict=True)
    changed = {key: torch.cat([old[:n], sampler[n:]]) for key, n, old, sampler in found if n}
    if not changed:
        return {}
    nested = torch.nested.as_nested_tensor(list(changed.values()), layout=torch.jagged)
    written = TensorDict({"rollout_log_probs": nested}, batch_size=len(changed))
    tq.kv_batch_put(keys=list(changed), partition_id=batch.partition_id, fields=written)
    wanted = [*fields, "response_mask", "responses"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=wanted).to_padded_tensor()
    prefix = dict(zip(keys, prefix_B, strict=True))
    for row, key in enumerate(batch.keys):
        data["response_mask"][row, : prefix.get(key, 0)] = 0
    return calculate_debug_metrics(DataProto(batch=data))
