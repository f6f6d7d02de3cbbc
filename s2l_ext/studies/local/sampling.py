"""Sampling with transformers' ``generate``, and the log-probabilities of what was sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from s2l_ext.studies.local.losses import pad


@dataclass(frozen=True)
class Sampler:
    """A model and how it samples; temperature 0 takes the likeliest token."""

    model: Any
    temperature: float
    top_p: float


def generate(
    sampler: Sampler, starts: list[list[int]], limits: list[int], tokenizer: Any
) -> list[tuple[list[int], list[float]]]:
    """Ids after each start, the end of the turn included, and their log-probabilities under the sampler.

    Args:
        limits: most ids of each.
    """
    if not starts:
        return []
    ids_B_S, seen_B_S = pad(starts, tokenizer.pad_token_id, left=True)
    greedy = sampler.temperature == 0
    with torch.inference_mode():
        output = sampler.model.generate(
            input_ids=ids_B_S,
            attention_mask=seen_B_S,
            do_sample=not greedy,
            temperature=None if greedy else sampler.temperature,
            top_p=None if greedy else sampler.top_p,
            top_k=None if greedy else 0,
            max_new_tokens=max(limits),
            return_dict_in_generate=True,
            output_scores=True,
            pad_token_id=tokenizer.pad_token_id,
        )
        scores_B_T = sampler.model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    sampled_B_T = output.sequences[:, ids_B_S.shape[1] :].tolist()
    cut = [ids[:limit] for ids, limit in zip(sampled_B_T, limits, strict=True)]
    lengths = [_length(ids, tokenizer.eos_token_id) for ids in cut]
    return [(ids[:n], row[:n]) for ids, row, n in zip(cut, scores_B_T.tolist(), lengths, strict=True)]


def _length(ids: list[int], end: int) -> int:
    return ids.index(end) + 1 if end in ids else len(ids)
