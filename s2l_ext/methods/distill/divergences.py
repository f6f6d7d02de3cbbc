"""Dense losses of sparse-to-dense (arXiv 2605.12483): per-token divergences between student and teacher.

Eq. 4 (on-policy distillation) is the reverse KL on the student's tokens, Eq. 5 (warm-up) the forward KL on the
teacher's. Four forms: from both models' logits; from hidden states (the one used in training, see
:mod:`.chunked_lm_head`); from the teacher's k likeliest tokens; from one sampled token. The one change
versus GRPO is that the teacher's distribution takes the place of the reward. State kept: none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from s2l_ext.methods.distill import divergence_rows as rows
from s2l_ext.methods.distill.chunked_lm_head import TokenDivergence, divergence_from_hidden
from s2l_ext.methods.distill.divergence_rows import CHUNK_SIZE

__all__ = [
    "TokenDivergence",
    "TopKDivergence",
    "divergence_from_hidden",
    "forward_kl",
    "jsd",
    "policy_gradient_k1",
    "reverse_kl",
    "sampled_kl",
    "topk_divergence",
]


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, chunk_size: int = CHUNK_SIZE) -> Tensor:
    """(B, T) KL(teacher || student) in nats per token (Eq. 5), gradient to the student's logits only.

    Args:
        student_logits: (B, T, V), any floating dtype; computed in float32 (float64 for float64).
        teacher_logits: (B, T, V).
        mask: (B, T); where it is 0 the value and the gradient are exactly 0 and the logits are not read.
        chunk_size: tokens at once. Beyond the inputs and the gradient nothing of (B, T, V) is made.

    Raises:
        ValueError: shapes differ, or a chunk has less than one token.
    """
    return _from_logits("forward_kl", student_logits, teacher_logits, mask, 0.5, chunk_size)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, chunk_size: int = CHUNK_SIZE) -> Tensor:
    """(B, T) KL(student || teacher) in nats per token (Eq. 4); the rest as :func:`forward_kl`.

    Infinite, without a usable gradient, where the teacher gives probability 0 to a token that the student can produce.
    """
    return _from_logits("reverse_kl", student_logits, teacher_logits, mask, 0.5, chunk_size)


def jsd(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, beta: float = 0.5, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    """(B, T) beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student.

    At most log 2, and symmetric at beta 0.5. At the ends it vanishes: jsd / beta tends to the forward KL for beta to
    0, jsd / (1 - beta) to the reverse KL for beta to 1. Not in the paper; the authors' code has it.

    Raises:
        ValueError: as :func:`forward_kl`, or ``beta`` is not inside (0, 1).
    """
    return _from_logits("jsd", student_logits, teacher_logits, mask, beta, chunk_size)


def _from_logits(
    kind: str, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, beta: float, chunk_size: int
) -> Tensor:
    rows.check(kind, beta, chunk_size)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits are {tuple(student_logits.shape)}, teacher_logits {tuple(teacher_logits.shape)}: they "
            "must agree. Where vocabularies are padded differently, cut both to the tokens that they share."
        )
    if mask.shape != student_logits.shape[:-1]:
        raise ValueError(f"mask is {tuple(mask.shape)}, wanted {tuple(student_logits.shape[:-1])}: one entry per token")
    return _FromLogits.apply(student_logits, teacher_logits.detach(), mask, kind, beta, chunk_size)


class _FromLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor, kind: str, beta: float, chunk_size: int
    ) -> Tensor:
        ctx.save_for_backward(student, teacher, mask)
        ctx.options = kind, beta, chunk_size
        value = torch.zeros(mask.shape, dtype=rows.wide(student.dtype), device=student.device)
        for index in _tokens(mask, chunk_size):
            log_p_C_V, log_q_C_V = rows.log_probs(student[index]), rows.log_probs(teacher[index])
            value[index] = rows.value(kind, log_p_C_V, log_q_C_V, None, beta).to(value.dtype)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, mask = ctx.saved_tensors
        kind, beta, chunk_size = ctx.options
        grad = torch.zeros_like(student)
        for index in _tokens(mask, chunk_size):
            log_p_C_V, log_q_C_V = rows.log_probs(student[index]), rows.log_probs(teacher[index])
            grad_C_V = rows.gradient(kind, log_p_C_V, log_q_C_V, None, beta)
            grad[index] = grad_C_V.mul_(grad_value[index][:, None]).to(grad.dtype)
        return grad, None, None, None, None, None


def _tokens(mask: Tensor, chunk_size: int) -> list[tuple[Tensor, ...]]:
    """Indices of the tokens that count, chunk by chunk; indexing copies these rows only, whatever the strides."""
    index = mask.nonzero(as_tuple=True)
    return [tuple(axis[part] for axis in index) for part in rows.parts(index[0].numel(), chunk_size)]


class TopKDivergence(NamedTuple):
    """(N,) each; the tails are the masses outside the teacher's k tokens, without gradient."""

    value: Tensor
    teacher_tail: Tensor
    student_tail: Tensor


def topk_divergence(
    student_logits_N_V: Tensor,
    teacher_topk_ids_N_K: Tensor,
    teacher_topk_log_probs_N_K: Tensor,
    kind: str = "forward_kl",
    beta: float = 0.5,
    chunk_size: int = CHUNK_SIZE,
) -> TopKDivergence:
    """Divergence over K + 1 buckets: the teacher's k likeliest tokens, and one tail with the rest of each model's mass.

    forward = sum_k q_k log(q_k / p_k) + Q log(Q / P), Q = 1 - sum_k q_k, P = 1 - sum_k p_k; reverse with p and q
    exchanged; jsd likewise. Merging tokens never increases a divergence (data-processing inequality), so each value is
    a lower bound of the full one, equal to it when both models share the tail out in the same proportions. A
    teacher tail below the rounding of the sum (1.2e-7 in float32) counts as that unless K = V: the reverse KL would be
    infinite. The teacher's buckets are normalised.

    Args:
        student_logits_N_V: any floating dtype; no second (N, V) tensor but its gradient is made.
        teacher_topk_ids_N_K: distinct tokens in every row, int64.
        teacher_topk_log_probs_N_K: under the teacher's full distribution, at temperature 1.
        kind: ``forward_kl``, ``reverse_kl`` or ``jsd``.

    Raises:
        ValueError: another kind, or shapes that do not fit.
    """
    rows.check(kind, beta, chunk_size)
    if kind == "sft":
        raise ValueError("kind='sft' needs no teacher tokens; use forward_kl, reverse_kl or jsd")
    if teacher_topk_ids_N_K.shape != teacher_topk_log_probs_N_K.shape:
        raise ValueError(
            f"ids {tuple(teacher_topk_ids_N_K.shape)} and log-probabilities {tuple(teacher_topk_log_probs_N_K.shape)} "
            "of the teacher's tokens must have one shape"
        )
    buckets_N_L = _BucketLogProbs.apply(student_logits_N_V, teacher_topk_ids_N_K, chunk_size)
    topk_N_K = teacher_topk_log_probs_N_K.detach().to(buckets_N_L.dtype)
    has_tail = topk_N_K.shape[1] < student_logits_N_V.shape[1]
    tail_N = (1 - topk_N_K.exp().sum(-1)).clamp_min(0) * has_tail
    log_tail_N = tail_N.clamp_min(torch.finfo(topk_N_K.dtype).eps * has_tail).log()
    teacher_N_L = torch.cat([topk_N_K, log_tail_N[:, None]], dim=-1)
    value_N = _from_logits(kind, buckets_N_L, teacher_N_L, torch.ones_like(tail_N), beta, chunk_size)
    return TopKDivergence(value_N, tail_N, buckets_N_L.detach()[:, -1].exp())


class _BucketLogProbs(torch.autograd.Function):
    """(N, K + 1) log-probabilities of K tokens and of all others together."""

    @staticmethod
    def forward(ctx: Any, logits_N_V: Tensor, ids_N_K: Tensor, chunk_size: int) -> Tensor:
        ctx.save_for_backward(logits_N_V, ids_N_K)
        ctx.chunk_size = chunk_size
        return torch.cat(
            [
                torch.cat([log_p_C_V.gather(-1, ids_C_K), _without(log_p_C_V, ids_C_K)], dim=-1)
                for part in rows.parts(logits_N_V.shape[0], chunk_size)
                for log_p_C_V, ids_C_K in [(rows.log_probs(logits_N_V[part]), ids_N_K[part])]
            ]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N_L: Tensor) -> tuple[Tensor, None, None]:
        logits_N_V, ids_N_K = ctx.saved_tensors
        grad_N_V = torch.empty_like(logits_N_V)
        for part in rows.parts(logits_N_V.shape[0], ctx.chunk_size):
            log_p_C_V, ids_C_K, grad_C_L = rows.log_probs(logits_N_V[part]), ids_N_K[part], grad_N_L[part]
            grad_C_V = log_p_C_V.exp().mul_(-grad_C_L.sum(-1, keepdim=True))
            log_tail_C_1 = _without(log_p_C_V, ids_C_K)
            within_C_V = log_p_C_V.sub_(log_tail_C_1).exp_().scatter_(-1, ids_C_K, 0.0)
            grad_C_V.addcmul_(within_C_V, grad_C_L[:, -1:]).scatter_add_(-1, ids_C_K, grad_C_L[:, :-1])
            grad_N_V[part] = grad_C_V.to(grad_N_V.dtype)
        return grad_N_V, None, None


def _without(log_p_C_V: Tensor, ids_C_K: Tensor) -> Tensor:
    """(C, 1) log of the mass outside ``ids``, summed over these tokens: 1 - sum would lose small tails."""
    return log_p_C_V.scatter(-1, ids_C_K, -torch.inf).logsumexp(-1, keepdim=True)


def sampled_kl(student_log_prob: Tensor, teacher_log_prob: Tensor, estimator: str = "k1") -> Tensor:
    """Reverse KL estimated from tokens that the student sampled, nats, any one shape.

    With r = log p_teacher - log p_student: k1 = -r and k3 = exp(r) - 1 - r are unbiased, k3 never negative,
    k2 = r^2 / 2 is biased with little variance. As losses they differ: the gradient of k1 is 0 in expectation (use
    :func:`policy_gradient_k1`), that of k2 is the reverse KL's, that of k3 the forward KL's.

    Raises:
        ValueError: an unknown estimator.
    """
    ratio = teacher_log_prob.detach() - student_log_prob
    if estimator == "k1":
        return -ratio
    if estimator == "k2":
        return ratio.square() / 2
    if estimator == "k3":
        return ratio.expm1() - ratio
    raise ValueError(f"estimator={estimator!r}: choose k1, k2 or k3")


def policy_gradient_k1(student_log_prob: Tensor, teacher_log_prob: Tensor) -> Tensor:
    """Loss of each sampled token whose expected gradient is that of the reverse KL (Eq. 2 with b = 1).

    -A log p_student with the advantage A = -(log p_student - log p_teacher) held fixed; any one shape. Tokens must come
    from the student as it is, at the temperature of both log-probabilities.
    """
    advantage = (teacher_log_prob - student_log_prob).detach()
    return -advantage * student_log_prob
