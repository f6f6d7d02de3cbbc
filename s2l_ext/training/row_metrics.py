"""Per-source metrics of a step, read from the rows the step trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from s2l_ext.errors import S2LError
from s2l_ext.training.batch_fields import LEARNER, SOURCES, SUM_PREFIX
from s2l_ext.training.queue import read
from s2l_ext.training.source_statistics import guided_advantage_spread, source_statistics
from s2l_ext.training.step import Step, StepRows

logger = logging.getLogger(__name__)

TOKEN_FIELDS = ["response_mask", "advantages"]
LEARNER_FIELD = "old_log_probs"
BEHAVIOUR_FIELD = "rollout_log_probs"
SUMS = {"ratio": "ppo_ratio_mean", "clipped": "ppo_clip_fraction", "weight": "applied_weight_mean", "tokens": ""}
"""Sums that the workers report -> the mean over tokens that they become."""


def row_source_metrics(step: Step, behaviour: bool, guided: bool) -> dict[str, float]:
    """Reward, length, advantage, tokens, seconds and sampler ratio by source; padding rows left out.

    Args:
        behaviour: old log-probabilities are the learner's, and the sampler's own were recorded.
        guided: some rows may start with guidance tokens.
    """
    rows, ratio_fields = step.rows, [LEARNER_FIELD, BEHAVIOUR_FIELD] if behaviour else []
    found = read(step.batch, ["metrics", *TOKEN_FIELDS, *ratio_fields], rows.names)
    seconds = [row["generate_sequences"] for row in found["metrics"]]
    lengths_B = found["response_mask"].offsets().diff()
    padded = found.select(*TOKEN_FIELDS, *ratio_fields).to_padded_tensor()
    mask_B_T = padded["response_mask"].float()
    prefix_B_T = torch.arange(mask_B_T.shape[1])[None, :] < torch.tensor(rows.prefix_len_B)[:, None]
    advantage_B = _masked_mean(padded["advantages"], mask_B_T).numpy()
    source_B = np.array(rows.source_B, dtype=object)
    metrics = source_statistics(
        source=source_B,
        reward=cast(np.ndarray, rows.reward_B),
        acc=rows.acc_B,
        response_length=mask_B_T.sum(dim=1).numpy(),
        advantage=advantage_B,
        gen_seconds=np.array(seconds),
        log_ratio_B_T=(padded[LEARNER_FIELD] - padded[BEHAVIOUR_FIELD]).numpy() if behaviour else None,
        mask_B_T=(mask_B_T * ~prefix_B_T).numpy(),
    )
    if guided:
        guided_B = np.array(rows.session_prefix_B) > 0
        metrics.update(guided_advantage_spread(advantage_B, guided_B, (source_B == LEARNER) & ~guided_B))
        metrics.update(prefix_metrics(mask_B_T, prefix_B_T, lengths_B))
    return metrics


def prefix_metrics(mask_B_T: torch.Tensor, prefix_B_T: torch.Tensor, lengths_B: torch.Tensor) -> dict[str, float]:
    """Guidance and continuation tokens of guided rows, and how many of each the loss reads.

    Args:
        mask_B_T: (B, T) 1 on tokens that the loss reads.
        prefix_B_T: (B, T) true on guidance tokens.
        lengths_B: (B,) response tokens of each row, guidance included.
    """
    is_token_B_T = torch.arange(mask_B_T.shape[1])[None, :] < lengths_B[:, None]
    continuation_B_T = is_token_B_T & ~prefix_B_T & prefix_B_T.any(dim=1)[:, None]
    counts = {
        "prefix_tokens": prefix_B_T.sum(),
        "prefix_tokens_in_loss": (mask_B_T * prefix_B_T).sum(),
        "continuation_tokens": continuation_B_T.sum(),
        "continuation_tokens_in_loss": (mask_B_T * continuation_B_T).sum(),
    }
    return {f"s2l/guidance/{name}": float(count) for name, count in counts.items()}


def require_rows(rows: StepRows, planned: Mapping[str, range], who: str, cause: str) -> dict[str, float]:
    """Count sessions that failed; verl trains on a group without the rows of its failed sessions.

    Args:
        planned: numbers of the sessions that ``who`` was to sample, by prompt uid.

    Returns:
        ``s2l/<who>/missing_rows``.

    Raises:
        S2LError: there were such sessions and not one of their rows arrived.
    """
    arrived = {key[:2] for key in rows.keys}
    sessions = {(uid, number) for uid in {uid for uid, _ in arrived} for number in planned[uid]}
    wanted, missing = len(sessions), len(sessions - arrived)
    if wanted and missing == wanted:
        raise S2LError(
            f"none of the step's {wanted} {who} sessions gave a row: {cause}. The error is "
            "in the log above ('Error in _run_prompt'). Restart with the same command to resume from the checkpoint."
        )
    if missing:
        logger.warning("%d of %d %s rows are missing: their sessions failed", missing, wanted, who)
    return {f"s2l/{who}/missing_rows": float(missing)}


def _masked_mean(values_B_T: torch.Tensor, mask_B_T: torch.Tensor) -> torch.Tensor:
    return (values_B_T * mask_B_T).sum(dim=1) / mask_B_T.sum(dim=1).clamp(min=1)


def finish_ratio_sums(metrics: dict[str, Any]) -> dict[str, float]:
    """Take the workers' sums out of ``metrics`` and divide them: PPO ratio, clip fraction, applied weight by source."""
    finished: dict[str, float] = {}
    for source in SOURCES:
        sums = {name: metrics.pop(f"actor/{SUM_PREFIX}/{source}/{name}", None) for name in SUMS}
        if not sums["tokens"]:
            continue
        means = {name: float(value / sums["tokens"]) for name, value in sums.items() if value is not None}
        finished.update({f"s2l/source/{source}/{SUMS[name]}": means[name] for name in means if SUMS[name]})
    return finished
