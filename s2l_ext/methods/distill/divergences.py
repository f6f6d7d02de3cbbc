"""Dense losses of sparse-to-dense (arXiv 2605.12483): per-token divergences between student and teacher.

Eq. 4 (on-policy distillation) is the reverse KL on the student's tokens, Eq. 5 (warm-up) the forward KL on the
teacher's. Three forms: from both models' logits; from hidden states (the one used in training, see
:mod:`.chunked_lm_head`); from one sampled token, as a policy gradient. The one change versus
GRPO is that the teacher's distribution takes the place of the reward. State kept: none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from s2l_ext.methods.distill import divergence_rows as rows
from s2l_ext.methods.distill.chunked_lm_head import TokenDivergence, divergence_from_hidden
from s2l_ext.methods.distill.divergence_rows import CHUNK_SIZE

__all__ = ["TokenDivergence", "divergence_from_hidden", "forward_kl", "jsd", "policy_gradient_k1", "reverse_kl"]


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


def policy_gradient_k1(student_log_prob: Tensor, teacher_log_prob: Tensor) -> Tensor:
    """Loss of each sampled token whose expected gradient is that of the reverse KL (Eq. 2 with b = 1).

    -A log p_student with the advantage A = -(log p_student - log p_teacher) held fixed; any one shape. Tokens must come
    from the student as it is, at the temperature of both log-probabilities.
    """
    advantage = (teacher_log_prob - student_log_prob).detach()
    return -advantage * student_log_prob
