"""Per-source metrics of a step, read from the rows the step trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta

from s2l_ext.errors import S2LError
from s2l_ext.training.actor_worker import SUM_PREFIX
from s2l_ext.training.batch_fields import PREFIX_FIELD
from s2l_ext.training.outcomes import accuracy_of
from s2l_ext.training.source_statistics import guided_advantage_spread, source_statistics
from s2l_ext.training.sources import EXPLORER, LEARNER, SOURCES

logger = logging.getLogger(__name__)

ROW_FIELDS = ["s2l_source", "rm_scores", "response_mask", "advantages", "metrics", "extra_fields"]
LEARNER_FIELD = "old_log_probs"
BEHAVIOUR_FIELD = "rollout_log_probs"
SUMS = {"ratio": "ppo_ratio_mean", "clipped": "ppo_clip_fraction", "weight": "applied_weight_mean", "tokens": ""}
"""Sums that the workers report -> the mean over tokens that they become."""


def row_source_metrics(
    batch: KVBatchMeta, with_behaviour: bool, with_prefix: bool = False, with_learner: bool = True
) -> dict[str, float]:
    """Reward, length, advantage, tokens, seconds and sampler ratio by source; padding rows left out.

    Args:
        batch: keys and tags of the step's rows in the TransferQueue.
        with_behaviour: whether the sampler's own log-probabilities were recorded (``calculate_log_probs``).
        with_prefix: rows carry the number of their guidance tokens.
        with_learner: the learner's log-probabilities were computed before the update.
    """
    keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    with_ratio = with_behaviour and with_learner
    fields = [*ROW_FIELDS, LEARNER_FIELD, BEHAVIOUR_FIELD] if with_ratio else ROW_FIELDS
    wanted = [*fields, PREFIX_FIELD] if with_prefix else fields
    rows = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=wanted)
    of_session_B = [int(value) for value in rows[PREFIX_FIELD]] if with_prefix else [0] * len(keys)
    prefix_B = prefix_lengths(keys, of_session_B)
    lengths_B = rows["response_mask"].offsets().diff()
    source = np.array(list(rows["s2l_source"]), dtype=object)
    extra = list(rows["extra_fields"])
    seconds = [row["generate_sequences"] for row in rows["metrics"]]
    rows = rows.select("rm_scores", "response_mask", "advantages", *fields[len(ROW_FIELDS) :])
    padded = rows.to_padded_tensor()
    mask_B_T = padded["response_mask"].float()
    prefix_B_T = torch.arange(mask_B_T.shape[1])[None, :] < torch.tensor(prefix_B)[:, None]
    advantage_B = _masked_mean(padded["advantages"], mask_B_T).numpy()
    metrics = source_statistics(
        source=source,
        reward=padded["rm_scores"].sum(dim=1).numpy(),
        acc=_accuracies(extra),
        response_length=mask_B_T.sum(dim=1).numpy(),
        advantage=advantage_B,
        gen_seconds=np.array(seconds),
        log_ratio_B_T=(padded[LEARNER_FIELD] - padded[BEHAVIOUR_FIELD]).numpy() if with_ratio else None,
        mask_B_T=(mask_B_T * ~prefix_B_T).numpy(),
    )
    if with_prefix:
        guided_B = np.array(of_session_B) > 0
        metrics.update(guided_advantage_spread(advantage_B, guided_B, (source == LEARNER) & ~guided_B))
        metrics.update(prefix_metrics(mask_B_T, prefix_B_T, lengths_B))
    return metrics


def prefix_lengths(keys: Sequence[str], of_session: Iterable[Any]) -> list[int]:
    """(B,) guidance tokens at the head of each row ``{uid}_{session}_{index}``: a session's first output has them all.

    Args:
        of_session: (B,) guidance tokens of the row's session.
    """
    return [int(value) if key.endswith("_0") else 0 for key, value in zip(keys, of_session, strict=True)]


def explorer_share(metrics: dict[str, float]) -> float:
    """Rows sampled by the explorer over all rows of the step."""
    rows = {source: metrics[f"s2l/source/{source}/rows"] for source in SOURCES}
    return rows[EXPLORER] / sum(rows.values())


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


def require_explorer_rows(batch: KVBatchMeta, slots: Mapping[str, int]) -> dict[str, float]:
    """Count explorer sessions that failed; verl trains on a group without the rows of its failed sessions.

    Args:
        batch: the step's rows; keys are ``{uid}_{session}_{index}``.
        slots: explorer sessions that the group of each ``uid`` was planned to have.

    Returns:
        ``s2l/explorer/missing_rows``.

    Raises:
        S2LError: the plan had explorer sessions and not one of their rows arrived.
    """
    planned = {uid: range(count) for uid, count in slots.items()}
    return _require_rows(batch, planned, "explorer", "the explorer failed")


def require_learner_rows(batch: KVBatchMeta, slots: Mapping[str, int], group_size: int) -> dict[str, float]:
    """The same of the sessions that the learner, or the learner continuing a trace, was to sample.

    Returns:
        ``s2l/learner/missing_rows``.

    Raises:
        S2LError: the plan left sessions to the learner and not one of their rows arrived.
    """
    planned = {uid: range(count, group_size) for uid, count in slots.items()}
    return _require_rows(batch, planned, "learner", "its server or its router failed")


def _require_rows(batch: KVBatchMeta, sessions: Mapping[str, range], who: str, cause: str) -> dict[str, float]:
    planned, missing = _missing(batch, sessions)
    if planned and missing == planned:
        raise S2LError(
            f"none of the step's {planned} {who} sessions gave a row: {cause}. The error is "
            "in the log above ('Error in _run_prompt'). Restart with the same command to resume from the checkpoint."
        )
    if missing:
        logger.warning("%d of %d %s rows are missing: their sessions failed", missing, planned, who)
    return {f"s2l/{who}/missing_rows": float(missing)}


def _missing(batch: KVBatchMeta, planned: Mapping[str, range]) -> tuple[int, int]:
    """Sessions that the groups of the batch were to have, and how many of them left no row."""
    keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    sessions = {tuple(key.rsplit("_", 2)[:2]) for key in keys}
    wanted = {(uid, str(number)) for uid in {uid for uid, _ in sessions} for number in planned[uid]}
    return len(wanted), len(wanted - sessions)


def _accuracies(extra_fields: list[dict[str, Any]]) -> np.ndarray | None:
    """The verifier's ``acc`` of every row, or None when the reward function returns none."""
    values = [accuracy_of(fields, strict=False) for fields in extra_fields]
    return None if any(value is None for value in values) else np.array(values, dtype=float)


def _masked_mean(values_B_T: torch.Tensor, mask_B_T: torch.Tensor) -> torch.Tensor:
    return (values_B_T * mask_B_T).sum(dim=1) / mask_B_T.sum(dim=1).clamp(min=1)


def finish_ratio_sums(metrics: dict[str, Any], weights_expected: bool = False) -> dict[str, float]:
    """Take the workers' sums out of ``metrics`` and divide them: PPO ratio, clip fraction, applied weight by source.

    Raises:
        RuntimeError: weights were written for this step and the workers' loss did not see them.
    """
    finished: dict[str, float] = {}
    for source in SOURCES:
        sums = {name: metrics.pop(f"actor/{SUM_PREFIX}/{source}/{name}", None) for name in SUMS}
        if not sums["tokens"]:
            continue
        means = {name: float(value / sums["tokens"]) for name, value in sums.items() if value is not None}
        if weights_expected and "weight" not in means:
            raise RuntimeError(f"importance weights of {source} rows did not reach the loss of the actor workers")
        finished.update({f"s2l/source/{source}/{SUMS[name]}": means[name] for name in means if SUMS[name]})
    return finished
