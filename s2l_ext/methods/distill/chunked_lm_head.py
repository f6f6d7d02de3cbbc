"""Divergences from hidden states: both output matrices are applied chunk by chunk, so no model's logits exist whole.

For the losses of sparse-to-dense (arXiv 2605.12483, Eq. 4 and 5). The one change versus verl's top-k distillation is
the full vocabulary; what is cached of the teacher is its last hidden state, D numbers a token in place of V. State
kept: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from s2l_ext.methods.distill import divergence_rows as rows
from s2l_ext.methods.distill.chunk_size import automatic


class TokenDivergence(NamedTuple):
    """(N,) each; only ``value`` has a gradient. None where the teacher or the labels that it needs were not given."""

    value: Tensor
    student_entropy: Tensor
    forward_kl: Tensor | None
    reverse_kl: Tensor | None
    agreement: Tensor | None
    """True where both models' likeliest token is the same."""
    student_log_prob: Tensor | None
    teacher_log_prob: Tensor | None


def divergence_from_hidden(
    student_hidden_N_H: Tensor,
    student_weight_V_H: Tensor,
    teacher_hidden_N_D: Tensor | None,
    teacher_weight_W_D: Tensor | None,
    kind: str = "reverse_kl",
    temperature: float | Tensor = 1.0,
    beta: float = 0.5,
    chunk_size: int | None = None,
    labels_N: Tensor | None = None,
    vocab_size: int | None = None,
) -> TokenDivergence:
    """Divergence of each token, with gradients to the student's hidden states and output matrix.

    Hidden states are cast to the dtype of each weight. The products of the two are float32 (float64 for float64), also
    those of bfloat16: a logit rounded to bfloat16 would move a per-token KL of 1e-5 by its own size. So is everything
    after. In bfloat16 stay: the inputs, and the gradient of the logits where it is multiplied with the weight (the
    gradient of the hidden states). The gradient of the weight is summed in float32. Backward computes the logits again,
    so both weights must stay as they are until then. Autocast is off inside.

    Args:
        student_hidden_N_H: last hidden states of N tokens; leave masked tokens out.
        student_weight_V_H: output matrix; may be the embedding.
        teacher_hidden_N_D: may lie on another device than the weights; None only with ``sft``.
        teacher_weight_W_D: output matrix; None only with ``sft``.
        kind: ``reverse_kl``, ``forward_kl``, ``jsd`` or ``sft`` (-log p of the label).
        temperature: > 0, divides both models' logits; a number or (N,).
        beta: the teacher's weight in the mixture of ``jsd``.
        chunk_size: tokens at once; None chooses by vocabulary, dtype and free memory (:mod:`.chunk_size`).
        labels_N: the tokens that followed, int64.
        vocab_size: rows of both matrices that are used, where paddings differ; probabilities are over these.

    Raises:
        ValueError: shapes do not fit, the vocabularies differ and ``vocab_size`` is not given, a label lies outside,
            a temperature is not positive, something that ``kind`` needs is missing.
    """
    vocab_size = _shared_vocabulary(student_weight_V_H, teacher_weight_W_D, vocab_size)
    if chunk_size is None:
        chunk_size = automatic(vocab_size, student_weight_V_H.dtype, student_weight_V_H.device)
    rows.check(kind, beta, chunk_size)
    head = _Head(
        _same_rows("teacher_hidden_N_D", teacher_hidden_N_D, student_hidden_N_H.shape[0]),
        teacher_weight_W_D,
        _same_rows("labels_N", labels_N, student_hidden_N_H.shape[0]),
        _checked_temperature(temperature, student_hidden_N_H),
        vocab_size,
        kind,
        beta,
        chunk_size,
    )
    head.check()
    return TokenDivergence(*_FromHidden.apply(student_hidden_N_H, student_weight_V_H, head))


@dataclass(frozen=True)
class _Head:
    """All that has no gradient."""

    teacher_hidden_N_D: Tensor | None
    teacher_weight_W_D: Tensor | None
    labels_N: Tensor | None
    temperature_N: Tensor | None
    vocab_size: int
    kind: str
    beta: float
    chunk_size: int

    def check(self) -> None:
        if (self.teacher_hidden_N_D is None) != (self.teacher_weight_W_D is None):
            raise ValueError("the teacher has hidden states and an output matrix: give both or neither")
        if self.kind == "sft" and self.labels_N is None:
            raise ValueError("kind='sft' is -log p of a label: give labels_N")
        if self.kind != "sft" and self.teacher_hidden_N_D is None:
            raise ValueError(f"kind={self.kind!r} compares with a teacher: give its hidden states and output matrix")
        if self.labels_N is not None and self.labels_N.numel():
            low, high = int(self.labels_N.min()), int(self.labels_N.max())
            if low < 0 or high >= self.vocab_size:
                wrong = low if low < 0 else high
                raise ValueError(f"labels_N holds {wrong}, outside the vocabulary of {self.vocab_size}; leave it out")

    def student(self, hidden_N_H: Tensor, weight_V_H: Tensor, part: slice) -> Tensor:
        """(C, vocab_size) log-probabilities of a part of the tokens."""
        weight = weight_V_H[: self.vocab_size]
        hidden_C_H = hidden_N_H[part].to(device=weight.device, dtype=weight.dtype)
        return rows.log_probs(rows.product(hidden_C_H, weight), self._at(self.temperature_N, part))

    def teacher(self, part: slice) -> Tensor | None:
        if self.teacher_hidden_N_D is None or self.teacher_weight_W_D is None:
            return None
        return self.student(self.teacher_hidden_N_D, self.teacher_weight_W_D, part)

    def label(self, part: slice) -> Tensor | None:
        return self._at(self.labels_N, part)

    @staticmethod
    def _at(values_N: Tensor | None, part: slice) -> Tensor | None:
        return None if values_N is None else values_N[part]


class _FromHidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_N_H: Tensor, weight_V_H: Tensor, head: _Head) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(hidden_N_H, weight_V_H)
        ctx.head = head
        ctx.set_materialize_grads(False)
        with torch.autocast(weight_V_H.device.type, enabled=False):
            chunks = [
                _describe(head, head.student(hidden_N_H, weight_V_H, part), part)
                for part in rows.parts(hidden_N_H.shape[0], head.chunk_size)
            ]
        outputs = tuple(None if column[0] is None else torch.cat(column) for column in zip(*chunks, strict=True))
        ctx.mark_non_differentiable(*(output for output in outputs[1:] if output is not None))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return None, None, None
        hidden_N_H, weight_V_H = ctx.saved_tensors
        with torch.autocast(weight_V_H.device.type, enabled=False):
            return *_backward(ctx.head, hidden_N_H, weight_V_H, grads[0], ctx.needs_input_grad), None


def _describe(head: _Head, log_p_C_V: Tensor, part: slice) -> TokenDivergence:
    log_q_C_V, label_C = head.teacher(part), head.label(part)
    forward = reverse = agreement = None
    if log_q_C_V is not None:
        forward, reverse = rows.kl(log_q_C_V, log_p_C_V), rows.kl(log_p_C_V, log_q_C_V)
        agreement = log_p_C_V.argmax(-1) == log_q_C_V.argmax(-1)
    known = {"forward_kl": forward, "reverse_kl": reverse}.get(head.kind)
    return TokenDivergence(
        rows.value(head.kind, log_p_C_V, log_q_C_V, label_C, head.beta) if known is None else known,
        rows.entropy(log_p_C_V),
        forward,
        reverse,
        agreement,
        None if label_C is None else rows.of_label(log_p_C_V, label_C),
        None if label_C is None or log_q_C_V is None else rows.of_label(log_q_C_V, label_C),
    )


def _backward(
    head: _Head, hidden_N_H: Tensor, weight_V_H: Tensor, grad_N: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    used = weight_V_H[: head.vocab_size]
    grad_hidden = torch.empty_like(hidden_N_H) if needs[0] else None
    grad_weight = torch.zeros_like(weight_V_H, dtype=rows.wide(weight_V_H.dtype)) if needs[1] else None
    scale_N = grad_N if head.temperature_N is None else grad_N / head.temperature_N
    for part in rows.parts(hidden_N_H.shape[0], head.chunk_size):
        log_p_C_V = head.student(hidden_N_H, weight_V_H, part)
        grad_C_V = rows.gradient(head.kind, log_p_C_V, head.teacher(part), head.label(part), head.beta)
        del log_p_C_V
        grad_C_V.mul_(scale_N[part, None])
        if grad_hidden is not None:
            grad_hidden[part] = (grad_C_V.to(used.dtype) @ used).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight[: head.vocab_size].addmm_(grad_C_V.T, hidden_N_H[part].to(grad_weight.dtype))
    return grad_hidden, None if grad_weight is None else grad_weight.to(weight_V_H.dtype)


def _same_rows(name: str, values: Tensor | None, count: int) -> Tensor | None:
    if values is not None and values.shape[0] != count:
        raise ValueError(
            f"{name} has {values.shape[0]} rows, student_hidden_N_H has {count}: one row per token in both"
        )
    return None if values is None else values.detach()


def _shared_vocabulary(student_weight_V_H: Tensor, teacher_weight_W_D: Tensor | None, vocab_size: int | None) -> int:
    student = student_weight_V_H.shape[0]
    teacher = student if teacher_weight_W_D is None else teacher_weight_W_D.shape[0]
    if vocab_size is None and student != teacher:
        raise ValueError(
            f"the student's output matrix has {student} rows, the teacher's {teacher}: pass vocab_size, the number of "
            "tokens that both tokenizers share (rows beyond it are padding and left out)"
        )
    if vocab_size is not None and not 1 <= vocab_size <= min(student, teacher):
        raise ValueError(f"vocab_size={vocab_size} must lie between 1 and {min(student, teacher)}, the smaller matrix")
    return student if vocab_size is None else vocab_size


def _checked_temperature(temperature: float | Tensor, hidden_N_H: Tensor) -> Tensor | None:
    """(N,), or None for 1."""
    if not isinstance(temperature, Tensor):
        if not temperature > 0:
            raise ValueError(f"temperature {temperature:g} has no distribution; use >0")
        return (
            None
            if temperature == 1.0
            else hidden_N_H.new_full(hidden_N_H.shape[:1], temperature, dtype=rows.wide(hidden_N_H.dtype))
        )
    if temperature.shape != hidden_N_H.shape[:1]:
        raise ValueError(
            f"temperature has shape {tuple(temperature.shape)}, wanted ({hidden_N_H.shape[0]},) or a number"
        )
    if not bool((temperature > 0).all()):
        raise ValueError(f"temperature {float(temperature.min()):g} has no distribution; use >0")
    return temperature.detach().to(hidden_N_H.device)
