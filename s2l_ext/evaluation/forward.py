"""transformers models: loading one to read from, batches of responses for it, and a choice of the next token that only
its own seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

Row = tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]
"""Token ids of a prompt and of a response to it."""


def load_causal_model(folder: Path, dtype: str, on_cpu: bool, trust_remote_code: bool = False) -> Any:
    """A model ready to sample from."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    model = loaded.eval()
    return model if on_cpu else model.to("cuda")


def length(row: Row) -> int:
    """Tokens of prompt and response."""
    return len(row[0]) + len(row[1])


def of_like_length(rows: Sequence[Row], most: int) -> Iterator[list[int]]:
    """Indices of rows of like length together, up to ``most`` tokens with padding; a longer row is alone."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: length(rows[index])):
        if batch and (len(batch) + 1) * length(rows[index]) > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(rows: Sequence[Sequence[int] | np.ndarray], value: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """(B, longest) ids, and a mask that is 1 on them."""
    width = max(map(len, rows))
    ids_B_L, seen_B_L = torch.full((len(rows), width), value), torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids_B_L[place, at] = torch.tensor(row, dtype=torch.long)
        seen_B_L[place, at] = 1
    return ids_B_L, seen_B_L


def padded(batch: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, what is no padding, and (bool) what is response; (B, T) each, padded on the right."""
    ids_B_T, real_B_T = pad([np.concatenate(row) for row in batch], 0)
    starts_B_1 = torch.tensor([[len(prompt)] for prompt, _ in batch])
    return ids_B_T, real_B_T, real_B_T.bool() & (torch.arange(ids_B_T.shape[1]) >= starts_B_1)


class PresencePenalty(LogitsProcessor):
    """Takes ``penalty`` off the logits of tokens that the response has, as vLLM does; the prompt, padded to
    ``prompt_length``, does not count."""

    def __init__(self, penalty: float, prompt_length: int) -> None:
        self.penalty, self.prompt_length = penalty, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Args: input_ids (B, prompt and response), scores (B, V). Returns (B, V)."""
        said_B_T = input_ids[:, self.prompt_length :]
        present_B_V = torch.zeros_like(scores).scatter(1, said_B_T, 1.0)
        return scores - self.penalty * present_B_V  # type: ignore[return-value]


class SeededChoice(LogitsProcessor):
    """Draws each row's next token with that row's own generator and leaves it as the only one.

    ``generate`` draws a whole batch from one generator, so that a row's tokens would depend on its neighbours.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float, top_k: int) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Args: scores (B, V). Returns (B, V), minus infinity except at the chosen token."""
        chances_B_V = self._chances(scores.float().cpu())
        chosen = [torch.multinomial(c, 1, generator=g) for c, g in zip(chances_B_V, self.generators, strict=True)]
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, torch.stack(chosen).to(scores.device), 0.0)  # type: ignore[return-value]

    def _chances(self, scores_B_V: torch.Tensor) -> torch.Tensor:
        """Temperature, then top-k, then top-p: the order of vLLM."""
        sorted_B_V, order_B_V = (scores_B_V / self.temperature).sort(dim=-1, descending=True)
        if self.top_k > 0:
            sorted_B_V[:, self.top_k :] = -torch.inf
        chances_B_V = sorted_B_V.softmax(dim=-1)
        before_B_V = chances_B_V.cumsum(dim=-1) - chances_B_V
        chances_B_V = chances_B_V.masked_fill(before_B_V >= self.top_p, 0.0)
        return torch.zeros_like(chances_B_V).scatter(1, order_B_V, chances_B_V)
