"""How far a model's next-token distributions are from another's, per response token, over the full vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from s2l_ext.errors import DataError
from s2l_ext.evaluation.forward import Row, load_causal_model, of_like_length, padded
from s2l_ext.evaluation.model_folder import Model
from s2l_ext.evaluation.samples import Sample, read_samples
from s2l_ext.methods.distill.divergences import forward_kl, reverse_kl

BATCH_LOGITS = 1 << 27
"""Logits of one batch of rows, per model: half a GB in float32. A single longer row has as many as it needs."""
CHUNK_TOKENS = 256

Divergence = Callable[..., Tensor]


def divergences(
    student: Model, teacher: Model, own: Sequence[Sample], teacher_rollouts: Path | None, on_cpu: bool, progress: bool
) -> dict[str, Any]:
    """``reverse_kl_per_token`` on ``own`` responses of the student, and, with the teacher's, ``forward_kl_per_token``.
    Raises DataError: no such rollouts, or tokens that the models do not have.

    Nats, means over tokens, each with a standard error over rows; both models in float32. They share a tokenizer.
    """
    held_out = [] if teacher_rollouts is None else list(read_samples(teacher_rollouts))
    if teacher_rollouts and not held_out:
        raise DataError(f"--teacher-rollouts {teacher_rollouts}: no samples. Run s2l eval for the teacher to its end.")
    pair = [load_causal_model(one.folder, "float32", on_cpu, one.trust_remote_code) for one in (student, teacher)]
    vocabulary = min(int(model.get_output_embeddings().weight.shape[0]) for model in pair)
    highest = max((max(sample.prompt_ids + sample.token_ids) for sample in held_out), default=0)
    if highest >= vocabulary:
        raise DataError(
            f"--teacher-rollouts {teacher_rollouts}: token {highest} is outside the vocabulary of {vocabulary}. Draw "
            "them from the model that --divergence-to names."
        )
    found = _mean("reverse_kl_per_token", reverse_kl, pair, vocabulary, own, progress)
    more = _mean("forward_kl_per_token", forward_kl, pair, vocabulary, held_out, progress) if held_out else {}
    return found | more


def _mean(
    key: str, divergence: Divergence, pair: list[Any], vocabulary: int, samples: Sequence[Sample], progress: bool
) -> dict[str, Any]:
    rows: list[Row] = [(sample.prompt_ids, sample.token_ids) for sample in samples]
    counts: list[int] = []
    sums: list[float] = []
    with tqdm(total=len(samples), desc=key, unit="row", disable=not progress) as bar:
        for batch in of_like_length(rows, BATCH_LOGITS // vocabulary):
            sums += _sums(divergence, pair, vocabulary, [rows[index] for index in batch])
            counts += [len(rows[index][1]) for index in batch]
            bar.update(len(batch))
    value, error = sum(sums) / sum(counts), ratio_error(sums, counts)
    return {key: value, f"{key}_standard_error": error, f"{key}_rows": len(sums), f"{key}_tokens": sum(counts)}


@torch.inference_mode()
def _sums(divergence: Divergence, pair: list[Any], vocabulary: int, batch: Sequence[Row]) -> list[float]:
    """Sum over the response tokens of each row. A position's logits predict the token after it."""
    ids_B_T, real_B_T, mask_B_T = (each.to(pair[0].device) for each in padded(batch))
    logits = (model(input_ids=ids_B_T, attention_mask=real_B_T).logits[:, :-1, :vocabulary] for model in pair)
    value_B_T = divergence(*logits, mask_B_T[:, 1:], chunk_size=CHUNK_TOKENS)
    return [float(value) for value in value_B_T.double().sum(dim=1)]


def ratio_error(sums: Sequence[float], counts: Sequence[int]) -> float | None:
    """Standard error of sum(sums) / sum(counts) when rows, not tokens, are independent; None for one row."""
    rows, mean = len(sums), sum(sums) / sum(counts)
    if rows < 2:
        return None
    squares = sum((value - mean * count) ** 2 for value, count in zip(sums, counts, strict=True))
    return math.sqrt(squares * rows / (rows - 1)) / sum(counts)
