"""Divergences from the teacher's likeliest tokens and from one sampled token."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ext.methods.distill.divergences import (
    _BucketLogProbs,
    forward_kl,
    jsd,
    policy_gradient_k1,
    reverse_kl,
    sampled_kl,
    topk_divergence,
)

FULL = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd}
N, V = 9, 40


def drawn(seed=0, scale=2.0):
    draw = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(N, V, generator=draw, dtype=torch.float64)
    return student, torch.log_softmax(scale * torch.randn(N, V, generator=draw, dtype=torch.float64), -1)


def test_buckets_by_hand():
    """p = (0.2, 0.3, 0.1, 0.4), q = (0.5, 0.3, 0.1, 0.1); the teacher's two tokens leave tails of 0.5 and 0.2."""
    student = torch.tensor([[0.2, 0.3, 0.1, 0.4]]).log()
    ids, log_q = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.3]]).log()
    out = topk_divergence(student, ids, log_q, "forward_kl")
    assert out.value.item() == pytest.approx(0.5 * math.log(2.5) + 0.2 * math.log(0.4), rel=1e-5)
    assert out.teacher_tail.item() == pytest.approx(0.2) and out.student_tail.item() == pytest.approx(0.5)
    reverse = topk_divergence(student, ids, log_q, "reverse_kl")
    assert reverse.value.item() == pytest.approx(0.2 * math.log(0.4) + 0.5 * math.log(2.5), rel=1e-5)
    assert not out.teacher_tail.requires_grad and not out.student_tail.requires_grad


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 3.0]), kind=st.sampled_from(sorted(FULL)))
@settings(max_examples=20, deadline=None)
def test_more_tokens_never_give_less_and_all_give_the_whole(seed, scale, kind):
    student, teacher = drawn(seed, scale)
    whole = FULL[kind](student, teacher, torch.ones(N))
    before = torch.zeros(N)
    for k in (1, 5, 20, V):
        log_q, ids = teacher.topk(k)
        value = topk_divergence(student, ids, log_q, kind).value
        assert (value <= whole + 1e-9).all() and (value >= before - 1e-9).all()
        before = value
    assert torch.allclose(before, whole)


def test_models_that_share_the_tail_out_alike_lose_nothing():
    student = torch.tensor([[0.2, 0.2, 0.4, 0.2]]).log()
    teacher = torch.tensor([[0.7, 0.0750, 0.15, 0.075]]).log()
    log_q, ids = teacher.topk(1)
    one = torch.ones(1)
    for kind, full in FULL.items():
        assert topk_divergence(student, ids, log_q, kind).value.item() == pytest.approx(
            full(student, teacher, one).item(), rel=1e-5
        )


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("k, chunk_size", [(1, 4), (7, 1), (7, 100), (V, 3)])
def test_topk_gradient_equals_autograd(kind, k, chunk_size):
    student, teacher = drawn()
    log_q, ids = teacher.topk(k)
    upstream = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def buckets(log_probs):
        inside = log_probs.gather(-1, ids)
        if k == V:
            return inside
        rest = log_probs.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
        return torch.cat([inside, rest], -1)

    def gradient(function):
        leaf = student.clone().requires_grad_()
        value = function(leaf)
        return value.detach(), torch.autograd.grad((value * upstream).sum(), leaf)[0]

    def plain(logits):
        p, q = buckets(torch.log_softmax(logits, -1)).exp(), buckets(teacher).exp()
        m = (p + q) / 2
        terms = {"forward_kl": q * (q / p).log(), "reverse_kl": p * (p / q).log()}
        terms["jsd"] = (p * (p / m).log() + q * (q / m).log()) / 2
        return terms[kind].sum(-1)

    value, grad = gradient(lambda s: topk_divergence(s, ids, log_q, kind, chunk_size=chunk_size).value)
    wanted, want = gradient(plain)
    assert torch.allclose(value, wanted, rtol=1e-9) and torch.allclose(grad, want, rtol=1e-7, atol=1e-12)


def test_a_tail_that_rounding_ate_is_finite():
    student = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    for log_q in (torch.tensor([[0.0]]), torch.tensor([[0.01]])):
        out = topk_divergence(student, torch.tensor([[0]]), log_q, "reverse_kl")
        assert out.value.isfinite().all() and out.teacher_tail.item() == 0.0
        assert torch.autograd.grad(out.value.sum(), student)[0].isfinite().all()


def test_a_small_student_tail_is_exact_in_float32():
    student = torch.tensor([[30.0, 0.0, 0.0]])
    out = topk_divergence(student, torch.tensor([[0]]), torch.tensor([[0.9]]).log(), "forward_kl")
    assert out.student_tail.item() == pytest.approx(2 * math.exp(-30), rel=1e-4)
    wanted = 0.9 * math.log(0.9) + 0.1 * (math.log(0.1) + 30 - math.log(2))
    assert out.value.item() == pytest.approx(wanted, rel=1e-4)


def test_topk_refuses():
    student, ids = torch.zeros(2, 5), torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="sft"):
        topk_divergence(student, ids, torch.zeros(2, 1), "sft")
    with pytest.raises(ValueError, match=r"\(2, 1\) and log-probabilities \(2, 2\)"):
        topk_divergence(student, ids, torch.zeros(2, 2))


def over_all_tokens(function, seed=0):
    """Expectation over the student's own tokens, its gradient, and the student's logits and teacher it came from."""
    student, teacher = (row[:1] for row in drawn(seed))
    leaf = student.clone().requires_grad_()
    log_p = torch.log_softmax(leaf, -1)
    mean = (log_p.exp().detach() * function(log_p, teacher)).sum()
    return mean, torch.autograd.grad(mean, leaf)[0], student, teacher


def gradient_of(full, student, teacher):
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(full(leaf, teacher, torch.ones(1)).sum(), leaf)[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator, seed):
    mean, _, student, teacher = over_all_tokens(lambda p, q: sampled_kl(p, q, estimator), seed)
    assert mean.item() == pytest.approx(reverse_kl(student, teacher, torch.ones(1)).item(), rel=1e-9)


def test_k2_is_biased_and_k3_is_never_negative():
    mean, _, student, teacher = over_all_tokens(lambda p, q: sampled_kl(p, q, "k2"))
    assert abs(mean.item() / reverse_kl(student, teacher, torch.ones(1)).item() - 1) > 0.05
    assert (sampled_kl(torch.log_softmax(student, -1), teacher, "k3") >= 0).all()
    assert (sampled_kl(torch.log_softmax(student, -1), teacher, "k1") < 0).any()


@pytest.mark.parametrize("seed", range(3))
def test_policy_gradient_follows_the_reverse_kl(seed):
    _, grad, student, teacher = over_all_tokens(policy_gradient_k1, seed)
    assert torch.allclose(grad, gradient_of(reverse_kl, student, teacher), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("estimator, full", [("k1", None), ("k2", reverse_kl), ("k3", forward_kl)])
def test_what_the_estimators_descend_as_losses(estimator, full):
    _, grad, student, teacher = over_all_tokens(lambda p, q: sampled_kl(p, q, estimator))
    wanted = torch.zeros_like(grad) if full is None else gradient_of(full, student, teacher)
    assert torch.allclose(grad, wanted, rtol=1e-8, atol=1e-12)


def test_unknown_estimators_are_refused():
    with pytest.raises(ValueError, match="estimator='k4': choose k1, k2 or k3"):
        sampled_kl(torch.zeros(1), torch.zeros(1), "k4")


def test_gradient_of_one_bucket_by_hand():
    """p = (0.2, 0.3, 0.5), bucket 0 and the rest: d log p_0 = e_0 - p, d log(p_1 + p_2) = (0, 0.375, 0.625) - p.

    Divergences read both with gradients that add up to 0, where a wrong sign of p would not show."""
    logits = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log().requires_grad_()
    buckets = _BucketLogProbs.apply(logits, torch.tensor([[0]]), 4)
    for column, want in enumerate(([0.8, -0.3, -0.5], [-0.2, 0.075, 0.125])):
        (grad,) = torch.autograd.grad(buckets[0, column], logits, retain_graph=True)
        assert grad[0].tolist() == pytest.approx(want)
