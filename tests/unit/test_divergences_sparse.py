"""The loss of one sampled token: what it descends in expectation."""

from __future__ import annotations

import pytest
import torch

from s2l_ext.methods.distill.divergences import policy_gradient_k1, reverse_kl

N, V = 9, 40


def drawn(seed=0, scale=2.0):
    draw = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(N, V, generator=draw, dtype=torch.float64)
    return student, torch.log_softmax(scale * torch.randn(N, V, generator=draw, dtype=torch.float64), -1)


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
def test_policy_gradient_follows_the_reverse_kl(seed):
    _, grad, student, teacher = over_all_tokens(policy_gradient_k1, seed)
    assert torch.allclose(grad, gradient_of(reverse_kl, student, teacher), rtol=1e-8, atol=1e-12)
