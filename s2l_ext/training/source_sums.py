"""What a micro-batch adds to the step's numbers by who sampled its rows, computed where its tensors are: in the loss.

Sums travel as metrics of the loss, and the driver divides them (:mod:`.source_statistics`): token tensors of a step of
a paper's size are gigabytes. Shapes: B rows, N response tokens of all rows, one row after the other. A log-ratio is
``log pi_learner(token) - log pi_sampler(token)`` of the old policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from tensordict import TensorDict
from torch import Tensor

from s2l_ext.training.batch_fields import EXPLORER, GUIDED, PLAIN, PREFIX_FIELD, SOURCE_FIELD, WEIGHTS

MAX_EXPONENT = 20.0


@dataclass(frozen=True)
class FlatRows:
    """A micro-batch's response tokens without padding. ``data``: columns of the rows, nested. ``prefix_B``: (B,)
    guidance tokens at the head of the row; -1 on later outputs of a guided session."""

    data: TensorDict
    prefix_B: Tensor

    @classmethod
    def of(cls, data: TensorDict) -> FlatRows:
        device = data["response_mask"].device
        prefix = [int(value) for value in data[PREFIX_FIELD]] if PREFIX_FIELD in data else [0] * len(data)
        return cls(data, torch.tensor(prefix, device=device))

    def tokens(self, name: str) -> Tensor:
        """(N,) of a column."""
        values: Tensor = self.data[name].values()
        return values

    @cached_property
    def offsets(self) -> Tensor:
        """(B + 1,) where rows begin and end."""
        offsets: Tensor = self.data["response_mask"].offsets()
        return offsets

    @cached_property
    def row_N(self) -> Tensor:
        """(N,) number of each token's row."""
        return torch.repeat_interleave(self.offsets.diff())

    @cached_property
    def mask_N(self) -> Tensor:
        """(N,) tokens that the loss reads."""
        return self.tokens("response_mask") > 0

    @cached_property
    def is_prefix_N(self) -> Tensor:
        """(N,) guidance tokens."""
        place_N = torch.arange(len(self.row_N), device=self.row_N.device) - self.offsets[:-1][self.row_N]
        return place_N < self.prefix_B[self.row_N]

    @cached_property
    def is_explorer_B(self) -> Tensor:
        return torch.tensor([source == EXPLORER for source in self.data[SOURCE_FIELD]], device=self.row_N.device)

    @cached_property
    def log_ratio_N(self) -> Tensor:
        """(N,) clipped at +-20; what the loss does not read is 0."""
        apart = self.tokens("old_log_probs") - self.tokens("rollout_log_probs")
        return torch.where(self.mask_N, apart, 0.0).clamp(-MAX_EXPONENT, MAX_EXPONENT)

    def sum_B(self, values_N: Tensor) -> Tensor:
        """(B,) sums over each row's tokens, float64."""
        zeros = torch.zeros(len(self.prefix_B), dtype=torch.float64, device=values_N.device)
        return zeros.index_add(0, self.row_N, values_N.double())

    def max_B(self, values_N: Tensor) -> Tensor:
        """(B,) largest of each row's tokens, 0 at least."""
        zeros = torch.zeros(len(self.prefix_B), dtype=torch.float64, device=values_N.device)
        return zeros.scatter_reduce(0, self.row_N, values_N.double(), "amax")


def truncated_weights(data: TensorDict, cap: float) -> Tensor:
    """Nested (B, j) ``min(exp(log_ratio), cap)`` on the explorer's tokens in the loss and exactly 1 elsewhere. ``cap``:
    largest weight, > 0."""
    if not cap > 0:
        raise ValueError(f"cap={cap} must be > 0: it is the largest importance weight (s2l.explorer.is_cap)")
    rows = FlatRows.of(data)
    applies_N = rows.mask_N & rows.is_explorer_B[rows.row_N]
    weights_N = torch.where(applies_N, rows.log_ratio_N.exp().clamp(max=cap), 1.0)
    longest = int(rows.offsets.diff().max())  # not told, padding takes the number of all tokens for it
    return torch.nested.nested_tensor_from_jagged(weights_N, rows.offsets, max_seqlen=longest)


def source_sums(
    data: TensorDict, cap: float | None = None, more: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """``<kind>/<name>``: sums over the micro-batch's rows by kind of row: the explorer's, guided ones, the learner's
    other ones. Names with ``_max`` are the largest and no sum; from ``rows`` the driver knows the numbers' share of a
    step.

    ``s2l_source`` and ``response_mask`` must be there, other columns give more numbers. ``cap`` is that of importance
    weights; ``more`` has (B,) numbers of each row to sum too.
    """
    rows = FlatRows.of(data)
    columns = {**_of_rows(rows), **_of_weights(rows, cap), **_of_sampler(rows), **(more or {})}
    columns |= _of_guidance(rows) if PREFIX_FIELD in data else {}
    is_plain_B = ~rows.is_explorer_B & (rows.prefix_B == 0)
    kind_K_B = torch.stack([rows.is_explorer_B, rows.prefix_B != 0, is_plain_B]).double()
    value_C_B = torch.stack([column.double() for column in columns.values()])
    total_K_C, most_K_C = kind_K_B @ value_C_B.T, (kind_K_B[:, None] * value_C_B).amax(dim=2)
    is_max_C = torch.tensor([name.endswith("_max") for name in columns], device=value_C_B.device)
    found_K_C = torch.where(is_max_C, most_K_C, total_K_C).tolist()  # the one wait for an accelerator
    found = {"rows": float(len(rows.prefix_B))}
    for kind, numbers in zip((EXPLORER, GUIDED, PLAIN), found_K_C, strict=True):
        found |= {f"{kind}/{name}": number for name, number in zip(columns, numbers, strict=True)}
    return found


def _of_rows(rows: FlatRows) -> dict[str, Tensor]:
    tokens_B = rows.sum_B(rows.mask_N)
    numbers = {"tokens": tokens_B, "read": tokens_B > 0}  # verl's rejection leaves rows without a token in the loss
    if "rm_scores" in rows.data:
        numbers["reward"] = rows.sum_B(rows.tokens("rm_scores"))
    if "advantages" in rows.data:
        advantage_B = rows.sum_B(torch.where(rows.mask_N, rows.tokens("advantages"), 0.0)) / tokens_B.clamp(min=1)
        numbers |= {"advantage": advantage_B, "advantage_squared": advantage_B.square()}
    return numbers


def _of_sampler(rows: FlatRows) -> dict[str, Tensor]:
    """Ratio and k3 = exp(d) - 1 - d, an estimate of KL(sampler || learner) (Schulman 2020), over sampled tokens."""
    if "old_log_probs" not in rows.data or "rollout_log_probs" not in rows.data:
        return {}
    sampled_N = rows.mask_N & ~rows.is_prefix_N
    apart_N = torch.where(sampled_N, rows.log_ratio_N.double(), 0.0)
    ratio_N = apart_N.exp() * sampled_N
    return {
        "sampled": rows.sum_B(sampled_N),
        "is_ratio": rows.sum_B(ratio_N),
        "is_ratio_max": rows.max_B(ratio_N),
        "k3": rows.sum_B(apart_N.expm1() - apart_N),
    }


def _of_weights(rows: FlatRows, cap: float | None) -> dict[str, Tensor]:
    """As they were made, and as the loss received them."""
    if cap is None or WEIGHTS not in rows.data:
        return {}
    above_N = rows.mask_N & rows.is_explorer_B[rows.row_N] & (rows.log_ratio_N.exp() > cap)
    made_N, given_N = truncated_weights(rows.data, cap).values(), rows.tokens(WEIGHTS)
    return {
        "is_weight": rows.sum_B(made_N * rows.mask_N),
        "is_clamped": rows.sum_B(above_N),
        "weight": rows.sum_B(given_N * rows.mask_N),
    }


def _of_guidance(rows: FlatRows) -> dict[str, Tensor]:
    """Guidance tokens that the loss reads, and tokens after the guidance."""
    has_prefix_B, prefix_B = rows.prefix_B > 0, rows.sum_B(rows.is_prefix_N)
    return {
        "prefix_in_loss": rows.sum_B(rows.mask_N & rows.is_prefix_N),
        "continuation": (rows.offsets.diff() - prefix_B) * has_prefix_B,
        "continuation_in_loss": rows.sum_B(rows.mask_N & ~rows.is_prefix_N) * has_prefix_B,
    }
