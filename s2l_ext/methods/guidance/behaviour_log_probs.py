"""Guidance tokens that the loss reads: whose log-probabilities count as their sampler's."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from verl import DataProto
from verl.utils.debug.metrics import calculate_debug_metrics

from s2l_ext.training.queue import put, read
from s2l_ext.training.step import Step


def take_guidance_for_the_learners(step: Step) -> dict[str, float]:
    """Give guidance tokens that the loss reads the learner's old log-probabilities as behaviour log-probabilities.

    They were placed, not sampled, and left the worker as 0. verl would read that as a sampler that was certain of them,
    and weigh or reject whole rows for it. Must come before verl's advantages, which apply its rollout correction.

    Returns:
        verl's metrics of how far sampler and learner are apart, over the tokens that were sampled; none where no row
        has guidance.
    """
    fields, batch, names = ["old_log_probs", "rollout_log_probs"], step.batch, step.rows.names
    prefix = {name: length for name, length in zip(names, step.rows.prefix_len_B, strict=True) if length}
    if not prefix:
        return {}
    rows = read(batch, fields, list(prefix))
    pairs = zip(prefix.values(), rows["old_log_probs"].unbind(), rows["rollout_log_probs"].unbind(), strict=True)
    changed = [torch.cat([old[:n], sampler[n:]]) for n, old, sampler in pairs]
    nested = torch.nested.as_nested_tensor(changed, layout=torch.jagged)
    put(batch, TensorDict({"rollout_log_probs": nested}, batch_size=len(changed)), list(prefix))
    data = read(batch, [*fields, "response_mask", "responses"]).to_padded_tensor()
    for row, name in enumerate(batch.keys):
        data["response_mask"][row, : prefix.get(name, 0)] = 0
    return calculate_debug_metrics(DataProto(batch=data))
