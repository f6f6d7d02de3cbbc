"""Per-source metrics of a step, read from the rows the step trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta

from s2l_ext.algorithms.grouping import source_statistics
from s2l_ext.algorithms.sources import EXPLORER, SOURCES
from s2l_ext.trainer.actor_worker import SUM_PREFIX

ROW_FIELDS = ["s2l_source", "rm_scores", "response_mask", "advantages", "old_log_probs", "metrics", "extra_fields"]
BEHAVIOUR_FIELD = "rollout_log_probs"


def row_source_metrics(batch: KVBatchMeta, with_behaviour: bool) -> dict[str, float]:
    """Reward, length, advantage, tokens, seconds and sampler ratio by source; padding rows left out.

    Args:
        batch: keys and tags of the step's rows in the TransferQueue.
        with_behaviour: whether the sampler's own log-probabilities were recorded (``calculate_log_probs``).
    """
    keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    fields = [*ROW_FIELDS, BEHAVIOUR_FIELD] if with_behaviour else ROW_FIELDS
    rows = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)
    source = np.array(list(rows["s2l_source"]), dtype=object)
    extra = list(rows["extra_fields"])
    seconds = [row["generate_sequences"] for row in rows["metrics"]]
    rows = rows.select("rm_scores", "response_mask", "advantages", "old_log_probs", *fields[len(ROW_FIELDS) :])
    padded = rows.to_padded_tensor()
    mask_B_T = padded["response_mask"].float()
    metrics = source_statistics(
        source=source,
        reward=padded["rm_scores"].sum(dim=1).numpy(),
        acc=_accuracies(extra),
        response_length=mask_B_T.sum(dim=1).numpy(),
        advantage=_masked_mean(padded["advantages"], mask_B_T).numpy(),
        gen_seconds=np.array(seconds),
        log_ratio_B_T=(padded["old_log_probs"] - padded[BEHAVIOUR_FIELD]).numpy() if with_behaviour else None,
        mask_B_T=mask_B_T.numpy(),
    )
    metrics["s2l/explorer/share"] = float(np.mean(source == EXPLORER))
    return metrics


def _accuracies(extra_fields: list[dict[str, Any]]) -> np.ndarray | None:
    """The verifier's ``acc`` of every row, or None when the reward function returns none."""
    values = [fields.get("reward_extra_info", {}).get("acc") for fields in extra_fields]
    return None if any(value is None for value in values) else np.array(values, dtype=float)


def _masked_mean(values_B_T: torch.Tensor, mask_B_T: torch.Tensor) -> torch.Tensor:
    return (values_B_T * mask_B_T).sum(dim=1) / mask_B_T.sum(dim=1).clamp(min=1)


def finish_ratio_sums(metrics: dict[str, Any]) -> dict[str, float]:
    """Take the workers' sums out of ``metrics`` and divide them: PPO ratio and clip fraction by source."""
    finished = {}
    for source in SOURCES:
        sums = {
            name: metrics.pop(f"actor/{SUM_PREFIX}/{source}/{name}", 0.0) for name in ("ratio", "clipped", "tokens")
        }
        if sums["tokens"] > 0:
            finished[f"s2l/source/{source}/ppo_ratio_mean"] = float(sums["ratio"] / sums["tokens"])
            finished[f"s2l/source/{source}/ppo_clip_fraction"] = float(sums["clipped"] / sums["tokens"])
    return finished
