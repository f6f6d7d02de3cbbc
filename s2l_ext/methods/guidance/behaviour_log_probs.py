"""Guidance tokens that the loss reads: which log-probabilities count as their sampler's."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from verl import DataProto
from verl.utils.debug.metrics import calculate_debug_metrics

from s2l_ext.training.queue import put, read
from s2l_ext.training.source_sums import FlatRows
from s2l_ext.training.step import Step


def take_guidance_for_the_learners(step: Step) -> dict[str, float]:
    """Give guidance tokens that the loss reads the learner's old log-probabilities as behaviour log-probabilities.
    Returns verl's metrics of how far sampler and learner are apart, over the tokens that were sampled; none without a
    guided row.

    They were placed, not sampled, and left the worker as 0. verl would read 0 as probability 1, and weigh or reject
    whole rows for it. This must come before verl's advantages, which apply its rollout correction.
    """
    batch, names = step.batch, step.rows.names
    prefix = {name: length for name, length in zip(names, step.rows.prefix_len_B, strict=True) if length}
    if not prefix:
        return {}
    rows = read(batch, ["old_log_probs", "rollout_log_probs", "response_mask"])
    flat = FlatRows(rows, torch.tensor([prefix.get(name, 0) for name in batch.keys]))
    old_N, sampler_N, mask_N = (rows[name].values() for name in ("old_log_probs", "rollout_log_probs", "response_mask"))
    nested = torch.nested.nested_tensor_from_jagged(torch.where(flat.is_prefix_N, old_N, sampler_N), flat.offsets)
    changed = torch.nested.as_nested_tensor(
        [row for name, row in zip(batch.keys, nested.unbind(), strict=True) if name in prefix], layout=torch.jagged
    )
    put(batch, TensorDict({"rollout_log_probs": changed}, batch_size=len(prefix)), list(prefix))
    sampled_N = mask_N * ~flat.is_prefix_N
    columns = {"old_log_probs": old_N, "rollout_log_probs": sampler_N, "response_mask": sampled_N, "responses": mask_N}
    return calculate_debug_metrics(DataProto(batch=TensorDict({k: v[None] for k, v in columns.items()}, batch_size=1)))
