"""A step's rollouts: sampling them, as lists until then and as tensors for the update."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from s2l_ext.evaluation.forward import pad
from s2l_ext.training.outcomes import RolloutOutcome


@dataclass
class Rows:
    """B rollouts, a prompt's side by side. Guidance is the head of a response.

    Attributes:
        sampler_log_probs: of each response token under who sampled it, temperature and top-p included; 0 on guidance.
        prompt_B: number of the row's prompt in the step.
    """

    prompts: list[list[int]] = field(default_factory=list)
    responses: list[list[int]] = field(default_factory=list)
    sampler_log_probs: list[list[float]] = field(default_factory=list)
    guidance_B: list[int] = field(default_factory=list)
    source_B: list[str] = field(default_factory=list)
    prompt_B: list[int] = field(default_factory=list)
    score_B: list[float] = field(default_factory=list)
    acc_B: list[float] = field(default_factory=list)

    def add(self, prompt: list[int], guidance: list[int], source: str, place: int) -> None:
        """A rollout that starts from ``guidance``."""
        self.prompts.append(prompt)
        self.responses.append(list(guidance))
        self.sampler_log_probs.append([0.0] * len(guidance))
        self.guidance_B.append(len(guidance))
        self.source_B.append(source)
        self.prompt_B.append(place)

    @property
    def outcomes(self) -> list[RolloutOutcome]:
        columns = zip(self.prompt_B, self.acc_B, self.source_B, self.guidance_B, strict=True)
        return [RolloutOutcome(str(prompt), acc, source, guidance) for prompt, acc, source, guidance in columns]

    @property
    def tokens_B(self) -> list[int]:
        """Prompt and response tokens of every row."""
        return [len(prompt) + len(response) for prompt, response in zip(self.prompts, self.responses, strict=True)]

    @property
    def sampled_B(self) -> list[int]:
        """Tokens of each response without guidance."""
        return [len(ids) - placed for ids, placed in zip(self.responses, self.guidance_B, strict=True)]


@dataclass
class Batch:
    """Rows as tensors: ids and what attention sees (B, S + T), ``mask_B_T`` 1 on tokens that the loss reads."""

    ids_B_L: Tensor
    seen_B_L: Tensor
    mask_B_T: Tensor

    @classmethod
    def of(cls, rows: Rows, padding: int, with_guidance: bool, correct_only: bool) -> Batch:
        """Prompts are padded on the left, responses on the right.

        Args:
            with_guidance: the loss reads guidance tokens too.
            correct_only: it reads nothing of rows that are not right.
        """
        prompt_B_S, seen_B_S = pad(rows.prompts, padding, left=True)
        response_B_T, seen_B_T = pad(rows.responses, padding)
        mask_B_T = seen_B_T.float()
        if not with_guidance:
            mask_B_T *= torch.arange(mask_B_T.shape[1]) >= torch.tensor(rows.guidance_B)[:, None]
        if correct_only:
            mask_B_T *= (torch.tensor(rows.acc_B) > 0.5)[:, None]
        return cls(torch.cat([prompt_B_S, response_B_T], 1), torch.cat([seen_B_S, seen_B_T], 1), mask_B_T)

    @property
    def response_B_T(self) -> Tensor:
        return self.ids_B_L[:, -self.mask_B_T.shape[1] :]

    def part(self, rows: slice) -> Batch:
        return Batch(self.ids_B_L[rows], self.seen_B_L[rows], self.mask_B_T[rows])

    def logits(self, model: Any, temperature: float) -> Tensor:
        """(B, T, V) that predict the response tokens, over the temperature."""
        positions = (self.seen_B_L.cumsum(1) - 1).clamp(min=0)
        output = model(input_ids=self.ids_B_L, attention_mask=self.seen_B_L, position_ids=positions, use_cache=False)
        chosen: Tensor = output.logits[:, -self.mask_B_T.shape[1] - 1 : -1].float() / temperature
        return chosen


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
    end = tokenizer.eos_token_id
    lengths = [ids.index(end) + 1 if end in ids else len(ids) for ids in cut]
    return [(ids[:n], row[:n]) for ids, row, n in zip(cut, scores_B_T.tolist(), lengths, strict=True)]
