"""The divergences on CUDA give the CPU's float64 numbers, and keep whole logits out of GPU memory; log-probabilities of
a tile of tokens are verl's of one token after the other."""

from __future__ import annotations

import pytest
import torch

from s2l_ext.methods.distill.divergences import divergence_from_hidden, forward_kl, jsd, reverse_kl

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
N, H, D, V = 300, 64, 96, 5000


def heads(dtype, device, tokens=N, vocabulary=V):
    draw = torch.Generator().manual_seed(0)
    shapes = [(tokens, H), (vocabulary, H), (tokens, D), (vocabulary, D)]
    tensors = [(torch.randn(*shape, generator=draw) * shape[-1] ** -0.25).to(device, dtype) for shape in shapes]
    return tensors, torch.randint(vocabulary, (tokens,), generator=draw).to(device)


def step(tensors, labels, kind):
    hidden, weight = (tensor.detach().requires_grad_() for tensor in tensors[:2])
    value = divergence_from_hidden(hidden, weight, *tensors[2:], kind=kind, labels_N=labels, chunk_size=128).value
    return value.detach(), *torch.autograd.grad(value.sum(), (hidden, weight))


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "sft"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_cuda_gives_the_numbers_of_float64(kind, dtype, tolerance):
    tensors, labels = heads(dtype, "cuda")
    exact = [tensor.double().cpu() for tensor in tensors]
    for got, want in zip(step(tensors, labels, kind), step(exact, labels.cpu(), kind), strict=True):
        assert float((got.double().cpu() - want).norm() / want.norm()) < tolerance


def test_the_teachers_cache_may_stay_on_the_host():
    tensors, labels = heads(torch.bfloat16, "cuda")
    on_device = step(tensors, labels, "reverse_kl")
    tensors[2] = tensors[2].cpu().pin_memory()
    assert all(torch.equal(a, b) for a, b in zip(on_device, step(tensors, labels, "reverse_kl"), strict=True))


def test_peak_memory_is_that_of_chunks():
    tensors, labels = heads(torch.bfloat16, "cuda", tokens=4096, vocabulary=50000)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(tensors, labels, "reverse_kl")
    whole_logits_bytes = 4096 * 50000 * 2
    assert torch.cuda.max_memory_allocated() - before < whole_logits_bytes


@pytest.mark.parametrize("function", [forward_kl, reverse_kl, jsd])
def test_the_logit_form_on_cuda(function):
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 70, V, generator=draw) for _ in range(2))
    mask = torch.rand(2, 70, generator=draw) > 0.3
    got = function(student.cuda(), teacher.cuda(), mask.cuda())
    want = function(student.double(), teacher.double(), mask)
    assert torch.allclose(got.cpu().double(), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_of_a_tile_are_those_of_one_token_after_the_other(dtype):
    """1,000 tokens of a real vocabulary: three tiles."""
    functional = pytest.importorskip("verl.utils.torch_functional")
    ours = functional.logprobs_from_logits_v2
    draw = torch.Generator("cuda").manual_seed(0)
    logits = (torch.randn(1000, 151_936, generator=draw, device="cuda") * 3).to(dtype)
    labels = torch.randint(151_936, (1000,), generator=draw, device="cuda")
    assert torch.equal(ours(logits, labels), ours.__wrapped__(logits, labels))
