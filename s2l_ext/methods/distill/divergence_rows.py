"""Divergences between a student's and a teacher's next-token distributions (arXiv 2605.12483, Eq. 4 and 5), row by row.

With p the student's and q the teacher's probabilities, both softmax(logits / temperature):

    forward_kl = KL(q || p)     reverse_kl = KL(p || q)     sft = -log p(label)
    jsd = beta KL(q || m) + (1 - beta) KL(p || m),  m = beta q + (1 - beta) p

Values are nats per token. A token of probability 0 contributes 0. The gradients below are with respect to
``logits / temperature``, written out because autograd would keep every intermediate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

KINDS = ("forward_kl", "reverse_kl", "jsd", "sft")
CHUNK_SIZE = 256
"""Tokens at once: with 152 k vocabulary a float32 chunk has 156 MB, and about five exist at the peak."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """What is computed in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def parts(count: int, chunk_size: int) -> Iterator[slice]:
    """Slices that cover ``count`` rows; one empty slice when there are none."""
    for start in range(0, max(count, 1), chunk_size):
        yield slice(start, min(start + chunk_size, count))


def check(kind: str, beta: float, chunk_size: int) -> None:
    """Raise ValueError for an unknown kind, a beta outside (0, 1) with jsd or a chunk below one token."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(KINDS)}")
    if kind == "jsd" and not 0.0 < beta < 1.0:
        raise ValueError(f"beta={beta}: at 0 and 1 the mixture is one of the two models and jsd is 0; use 0 < beta < 1")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: a chunk has at least one token")


def product(hidden_C_H: Tensor, weight_V_H: Tensor) -> Tensor:
    """(C, V) hidden @ weight.T in the wide dtype, without rounding to a narrower one in between.

    CUDA multiplies bfloat16 and keeps its float32 sums; the CPU has no such product, so both factors are copied wide.
    """
    dtype = wide(weight_V_H.dtype)
    if dtype == weight_V_H.dtype:
        return hidden_C_H @ weight_V_H.T
    if weight_V_H.is_cuda:
        return torch.mm(hidden_C_H, weight_V_H.T, out_dtype=dtype)
    return hidden_C_H.to(dtype) @ weight_V_H.to(dtype).T


def log_probs(logits_C_V: Tensor, temperature_C: Tensor | None = None) -> Tensor:
    """(C, V) log softmax(logits / temperature) in the wide dtype."""
    dtype = wide(logits_C_V.dtype)
    if temperature_C is None:
        return torch.log_softmax(logits_C_V, dim=-1, dtype=dtype)
    return torch.log_softmax(logits_C_V / temperature_C.to(dtype)[:, None], dim=-1)


def mean_under(prob_C_V: Tensor, amount_C_V: Tensor) -> Tensor:
    """(C,) sum of prob * amount, where a probability of 0 counts as 0 even with an infinite amount."""
    return (prob_C_V * amount_C_V).masked_fill_(prob_C_V == 0, 0).sum(-1)


def kl(log_a_C_V: Tensor, log_b_C_V: Tensor) -> Tensor:
    """(C,) KL(a || b); what rounding puts below 0 is 0."""
    return mean_under(log_a_C_V.exp(), log_a_C_V - log_b_C_V).clamp_min_(0)


def entropy(log_p_C_V: Tensor) -> Tensor:
    """(C,) entropy in nats."""
    return -mean_under(log_p_C_V.exp(), log_p_C_V)


def of_label(log_p_C_V: Tensor, label_C: Tensor) -> Tensor:
    """(C,) log-probability of each row's label."""
    return log_p_C_V.gather(-1, label_C[:, None]).squeeze(-1)


def log_mixture(log_p_C_V: Tensor, log_q_C_V: Tensor, beta: float) -> Tensor:
    """(C, V) log(beta q + (1 - beta) p)."""
    return torch.logaddexp(log_q_C_V + math.log(beta), log_p_C_V + math.log1p(-beta))


def value(kind: str, log_p_C_V: Tensor, log_q_C_V: Tensor | None, label_C: Tensor | None, beta: float) -> Tensor:
    """(C,) divergence of each row; ``sft`` reads the label, the others the teacher."""
    if kind == "sft":
        assert label_C is not None
        return -of_label(log_p_C_V, label_C)
    assert log_q_C_V is not None
    if kind == "forward_kl":
        return kl(log_q_C_V, log_p_C_V)
    if kind == "reverse_kl":
        return kl(log_p_C_V, log_q_C_V)
    log_m_C_V = log_mixture(log_p_C_V, log_q_C_V, beta)
    return beta * kl(log_q_C_V, log_m_C_V) + (1 - beta) * kl(log_p_C_V, log_m_C_V)


def gradient(kind: str, log_p_C_V: Tensor, log_q_C_V: Tensor | None, label_C: Tensor | None, beta: float) -> Tensor:
    """(C, V) d value / d (logits / temperature). Overwrites both log-probabilities.

    forward: p - q; sft: p - onehot; reverse: p (r - E_p r) with r = log p - log q; jsd: (1 - beta) p (r - E_p r) with
    r = log p - log m.
    """
    p_C_V = log_p_C_V.exp()
    if kind == "sft":
        assert label_C is not None
        return p_C_V.scatter_add_(-1, label_C[:, None], torch.full_like(p_C_V[:, :1], -1.0))
    assert log_q_C_V is not None
    if kind == "forward_kl":
        return p_C_V.sub_(log_q_C_V.exp_())
    if kind == "reverse_kl":
        return _centered(p_C_V, log_p_C_V.sub_(log_q_C_V))
    return _centered(p_C_V, log_p_C_V.sub_(log_mixture(log_p_C_V, log_q_C_V, beta))).mul_(1 - beta)


def _centered(p_C_V: Tensor, ratio_C_V: Tensor) -> Tensor:
    ratio_C_V.masked_fill_(p_C_V == 0, 0)
    mean_C = mean_under(p_C_V, ratio_C_V)
    return ratio_C_V.sub_(mean_C[:, None]).mul_(p_C_V)
