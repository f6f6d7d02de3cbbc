"""A step's rollouts, as lists while they are sampled and as tensors for the update."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from s2l_ext.studies.local.losses import pad
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
