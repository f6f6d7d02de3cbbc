"""The driver's part of sparse-to-dense: rows without advantages, rows that are left out, and what is logged.

The loss reads neither old log-probabilities nor advantages; verl's metrics read advantages, which are written as 0.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from s2l_ext.errors import DataError
from s2l_ext.methods.distill.config import DistillConfig
from s2l_ext.training.actor_worker import SUM_PREFIX
from s2l_ext.training.batch_fields import DISTILL_BLOCK
from s2l_ext.training.outcomes import accuracy_of

logger = logging.getLogger(__name__)

PREFIX = f"actor/{SUM_PREFIX}/distill/"


def adapt(config: DictConfig, distill: DistillConfig) -> None:
    """Leave the block where the workers find it, or set up verl's own distillation for ``scorer: server``."""
    with open_dict(config):
        if distill.in_actor:
            config.actor_rollout_ref[DISTILL_BLOCK] = OmegaConf.create(asdict(distill))
        else:
            _teacher_servers(config, distill)


def _teacher_servers(config: DictConfig, distill: DistillConfig) -> None:
    sampled = distill.loss == "sampled_k1"
    given = {
        "enabled": True,
        "nnodes": distill.nnodes,
        "n_gpus_per_node": distill.n_gpus_per_node,
        "distillation_loss": {
            "loss_mode": "k1" if sampled else "forward_kl_topk",
            "topk": None if sampled else distill.topk,
            "use_task_rewards": False,
            "use_policy_gradient": sampled,
            "loss_max_clamp": None,
            "log_prob_min_clamp": None,
        },
        "teacher_models": {
            "teacher_model": {
                "model_path": distill.teacher_path,
                "inference": {"tensor_model_parallel_size": distill.tensor_model_parallel_size},
            }
        },
    }
    config.distillation = OmegaConf.merge(config.distillation, given)


def zero_advantages(batch: KVBatchMeta) -> KVBatchMeta:
    """Give verl's metrics the fields that they read."""
    rows = _get(batch, ["response_mask"])
    zeros = torch.nested.nested_tensor_from_jagged(
        torch.zeros_like(rows["response_mask"].values(), dtype=torch.float32), rows["response_mask"].offsets()
    )
    return _put(batch, {"advantages": zeros, "returns": zeros.clone()})


def leave_out_wrong(batch: KVBatchMeta) -> tuple[KVBatchMeta, dict[str, float]]:
    """For ``correct_only``: take the tokens of rows that the verifier rejects out of the loss.

    Raises:
        DataError: the reward gave a row no ``acc``.
    """
    rows = _get(batch, ["response_mask", "extra_fields"])
    right = [_is_right(extra) for extra in rows["extra_fields"]]
    lengths = rows["response_mask"].offsets().diff()
    keep = torch.repeat_interleave(torch.tensor(right, dtype=rows["response_mask"].dtype), lengths.cpu())
    mask = torch.nested.nested_tensor_from_jagged(
        rows["response_mask"].values() * keep.to(rows["response_mask"].device), rows["response_mask"].offsets()
    )
    if not any(right):
        logger.warning("s2l.distill.correct_only: no row of this step is correct, so nothing is learned from it")
    real = [is_right for is_right, tag in zip(right, batch.tags, strict=True) if not tag.get("is_padding", False)]
    batch = _put(batch, {"response_mask": mask, "loss_mask": mask.clone()})
    return batch, {"s2l/distill/rows_kept": float(sum(real)), "s2l/distill/rows": float(len(real))}


def _is_right(extra_fields: dict[str, Any]) -> bool:
    acc = accuracy_of(extra_fields, strict=True)
    if acc is None:
        raise DataError(
            "s2l.distill.correct_only=True needs the verifier's correctness, but the reward function gave a row no "
            "'acc'. Return it beside 'score', or set s2l.distill.correct_only=false."
        )
    return acc > 0.5


def _get(batch: KVBatchMeta, fields: list[str]) -> TensorDict:
    return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)


def _put(batch: KVBatchMeta, fields: dict[str, torch.Tensor]) -> KVBatchMeta:
    rows = TensorDict(fields, batch_size=len(batch))
    extra = batch.extra_info
    batch = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=rows)
    batch.extra_info.update(extra)
    return batch


def finish_token_sums(metrics: dict[str, Any]) -> dict[str, float]:
    """Take the workers' sums out of ``metrics`` and divide them: means over the tokens that the loss read, in nats.

    Raises:
        RuntimeError: no sums arrived: the workers trained with another loss.
    """
    sums = {name: float(metrics.pop(name)) for name in list(metrics) if name.startswith(PREFIX)}
    if not sums:
        raise RuntimeError("s2l.distill: the actor workers did not report the loss; they trained with another one")
    tokens = sums.pop(f"{PREFIX}tokens")
    means = {f"s2l/distill/{name.removeprefix(PREFIX)}": value / max(1.0, tokens) for name, value in sums.items()}
    return means | {"s2l/distill/tokens": tokens}
