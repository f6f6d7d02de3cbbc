"""Forward passes over responses: log-probability and entropy of each token, a chunk of logits at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from s2l_ext.errors import ConfigError
from s2l_ext.evaluation.forward import load_causal_model, of_like_length, padded
from s2l_ext.methods.distill.output_layer import TOLERANCE, amplified, largest_difference, probe_ids
from s2l_ext.studies.diversity.sets import Ids

BATCH_TOKENS = 1 << 14
CHUNK_LOGITS = 1 << 26
"""A quarter of a GB in float32."""

Floats32 = NDArray[np.float32]


class TokenModel:
    """A causal model in float32 as its body and its output matrix, so that no row's logits exist whole.

    Raises:
        ConfigError: the model does something to its logits after the output matrix.
    """

    def __init__(self, name: str, folder: Path, on_cpu: bool, trust_remote_code: bool = False) -> None:
        self.model = load_causal_model(folder, "float32", on_cpu, trust_remote_code).requires_grad_(False)
        self.body, self.head = self.model.base_model, self.model.get_output_embeddings()
        self.device = self.head.weight.device
        self.chunk = max(1, CHUNK_LOGITS // int(self.head.weight.shape[0]))
        self._refuse_other_head(name, folder)

    @torch.no_grad()
    def _refuse_other_head(self, name: str, folder: Path) -> None:
        ids = probe_ids(self.device)
        with amplified(self.head):
            whole, parts = self.model(input_ids=ids).logits, self.head(self.body(input_ids=ids).last_hidden_state)
        difference = largest_difference(whole, parts)
        if difference > TOLERANCE:
            raise ConfigError(
                f"--models {name}={folder}: its logits are not its output matrix times its last hidden state (a cap or "
                f"a scale; largest difference {difference:.2g} of the largest logit), which forward passes in chunks "
                "need. Leave the model out."
            )

    def score(self, rows: Sequence[tuple[Ids, Ids]], temperature: float, bar: tqdm[Any]) -> list[Floats32]:
        """Of each row (prompt, response): (2, T) log-probability of its tokens and entropy in nats, logits divided by
        ``temperature``."""
        found: list[Floats32] = [np.empty((2, 0), np.float32)] * len(rows)
        for batch in of_like_length(rows, BATCH_TOKENS):
            scored = self._score_batch([rows[index] for index in batch], temperature)
            for index, values in zip(batch, scored, strict=True):
                found[index] = values
            bar.update(len(batch))
        return found

    @torch.inference_mode()
    def _score_batch(self, batch: Sequence[tuple[Ids, Ids]], temperature: float) -> Iterator[Floats32]:
        ids_B_T, real_B_T, spoken_B_T = (part.to(self.device) for part in padded(batch))
        hidden_B_T_H = self.body(input_ids=ids_B_T, attention_mask=real_B_T).last_hidden_state
        hidden_N_H, labels_N = hidden_B_T_H[:, :-1][spoken_B_T[:, 1:]], ids_B_T[:, 1:][spoken_B_T[:, 1:]]
        parts = zip(hidden_N_H.split(self.chunk), labels_N.split(self.chunk), strict=True)
        scored_2_N = torch.cat([self._of_chunk(*part, temperature) for part in parts], dim=1).float().cpu().numpy()
        ends = np.cumsum([len(response) for _, response in batch])[:-1]
        return iter(np.split(scored_2_N, ends, axis=1))

    def _of_chunk(self, hidden_N_H: Tensor, labels_N: Tensor, temperature: float) -> Tensor:
        logs_N_V = (self.head(hidden_N_H).float() / temperature).log_softmax(dim=-1)
        entropy_N = -(logs_N_V.exp() * logs_N_V).sum(dim=-1)
        return torch.stack([logs_N_V.gather(1, labels_N[:, None])[:, 0], entropy_N])

    def log_prob(self, prompt: Ids, response: Ids, temperature: float) -> Tensor:
        """Log-probability of a whole response, a scalar with gradients to what requires them."""
        ids_T = torch.tensor(np.concatenate([prompt, response]), dtype=torch.long, device=self.device)
        hidden_T_H = self.body(input_ids=ids_T[None]).last_hidden_state[0, len(prompt) - 1 : -1]
        parts = zip(hidden_T_H.split(self.chunk), ids_T[len(prompt) :].split(self.chunk), strict=True)
        sums = [checkpoint(self._sum_of_chunk, *part, temperature, use_reentrant=False) for part in parts]
        return torch.stack(sums).sum()

    def _sum_of_chunk(self, hidden_N_H: Tensor, labels_N: Tensor, temperature: float) -> Tensor:
        logits_N_V = self.head(hidden_N_H).float() / temperature
        return -torch.nn.functional.cross_entropy(logits_N_V, labels_N, reduction="sum")
