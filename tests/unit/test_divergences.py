"""Divergences from logits and from hidden states: autograd's gradients, values by hand, properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ext.methods.distill.divergences import divergence_from_hidden, forward_kl, jsd, reverse_kl

KINDS = ["forward_kl", "reverse_kl", "jsd", "sft"]
FROM_LOGITS = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd}
N, H, D, V, W = 13, 8, 6, 50, 53
CLOSE = 1e-5


def reference(kind, student, teacher, labels=None, beta=0.5, temperature=None):
    """The formula on whole logits, for autograd in float64."""
    scale = 1.0 if temperature is None else torch.as_tensor(temperature).double().reshape(-1, 1)
    log_p = torch.log_softmax(student.double() / scale, -1)
    if kind == "sft":
        return -log_p.gather(-1, labels[:, None])[:, 0]
    log_q = torch.log_softmax(teacher.double() / scale, -1)
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward_kl":
        return (q * (log_q - log_p)).sum(-1)
    if kind == "reverse_kl":
        return (p * (log_p - log_q)).sum(-1)
    m = beta * q + (1 - beta) * p
    return (beta * q * (log_q - m.log()) + (1 - beta) * p * (log_p - m.log())).sum(-1)


def distance(value, wanted):
    """Relative, in the norm."""
    value, wanted = value.detach().double(), wanted.detach().double()
    return float((value - wanted).norm() / wanted.norm())


def pair(seed=0, shape=(2, 7), scale=3.0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return tuple((scale * torch.randn(*shape, V, generator=draw)).to(dtype) for _ in range(2))


def heads(seed=0, teacher_rows=V, dtype=torch.float32):
    """Hidden states, output matrices, labels and the weight of every token in the sum that is differentiated."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(N, H), (V, H), (N, D), (teacher_rows, D)]
    tensors = [torch.randn(*shape, generator=draw).to(dtype) for shape in shapes]
    return *tensors, torch.randint(V - 5, (N,), generator=draw), torch.randn(N, generator=draw)


def gradients(function, upstream, *leaves):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    value = function(*leaves)
    return value.detach(), torch.autograd.grad((value * upstream.to(value.dtype)).sum(), leaves)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [1, 4, 13, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6, torch.linspace(0.5, 2.0, N)])
@pytest.mark.parametrize("beta", [0.5, 0.1])
def test_hidden_form_equals_autograd_on_whole_logits(kind, chunk_size, temperature, beta):
    hidden, weight, teacher_hidden, teacher_weight, labels, upstream = heads()
    value, grads = gradients(
        lambda h, w: (
            divergence_from_hidden(
                h, w, teacher_hidden, teacher_weight, kind, temperature, beta, chunk_size, labels
            ).value
        ),
        upstream,
        hidden,
        weight,
    )
    teacher = teacher_hidden.double() @ teacher_weight.double().T
    wanted, wanted_grads = gradients(
        lambda h, w: reference(kind, h @ w.T, teacher, labels, beta, temperature),
        upstream,
        hidden.double(),
        weight.double(),
    )
    assert value.dtype == torch.float32
    assert distance(value, wanted) < CLOSE
    assert all(distance(grad, want) < CLOSE for grad, want in zip(grads, wanted_grads, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_shared_vocabulary_counts(kind):
    hidden, weight, teacher_hidden, teacher_weight, labels, upstream = heads(teacher_rows=W)
    shared = V - 5
    value, (grad_hidden, grad_weight) = gradients(
        lambda h, w: (
            divergence_from_hidden(
                h, w, teacher_hidden, teacher_weight, kind, labels_N=labels, vocab_size=shared, chunk_size=4
            ).value
        ),
        upstream,
        hidden,
        weight,
    )
    teacher = teacher_hidden.double() @ teacher_weight[:shared].double().T
    wanted, (want_hidden, want_weight) = gradients(
        lambda h, w: reference(kind, h @ w[:shared].T, teacher, labels), upstream, hidden.double(), weight.double()
    )
    assert distance(value, wanted) < CLOSE
    assert distance(grad_hidden, want_hidden) < CLOSE and distance(grad_weight, want_weight) < CLOSE
    assert grad_weight.shape == weight.shape and not grad_weight[shared:].any()


@pytest.mark.parametrize("kind", FROM_LOGITS)
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_logit_form_equals_autograd_with_any_mask(kind, chunk_size):
    student, teacher = pair()
    mask = torch.tensor([[1, 0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 1, 0]])
    upstream = torch.randn(2, 7, generator=torch.Generator().manual_seed(5))
    function = FROM_LOGITS[kind]
    value, (grad,) = gradients(lambda s: function(s, teacher, mask, chunk_size=chunk_size), upstream, student)
    wanted, (want,) = gradients(lambda s: reference(kind, s, teacher) * mask, upstream, student.double())
    assert distance(value, wanted) < CLOSE and distance(grad, want) < CLOSE
    assert not value[mask == 0].any() and not grad[mask == 0].any()


@pytest.mark.parametrize("kind", FROM_LOGITS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_logits_are_not_read(kind, poison):
    student, teacher = pair()
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 2] = mask[1, 6] = False
    clean = gradients(lambda s: FROM_LOGITS[kind](s, teacher, mask, chunk_size=3), torch.ones(2, 7), student)
    student[~mask], teacher[~mask] = poison, poison
    poisoned = gradients(lambda s: FROM_LOGITS[kind](s, teacher, mask, chunk_size=3), torch.ones(2, 7), student)
    assert torch.equal(clean[0], poisoned[0]) and torch.equal(clean[1][0], poisoned[1][0])
    nothing = FROM_LOGITS[kind](student, teacher, torch.zeros(2, 7))
    assert not nothing.any()


def test_views_of_longer_logits_give_the_same():
    student, teacher = pair(shape=(2, 8))
    mask = torch.ones(2, 7)
    value, (grad,) = gradients(lambda s: reverse_kl(s[:, :-1], teacher[:, 1:], mask), mask, student)
    wanted = reverse_kl(student[:, :-1].contiguous(), teacher[:, 1:].contiguous(), mask)
    assert torch.equal(value, wanted) and not grad[:, -1].any() and grad[:, :-1].any()


HAND_P, HAND_Q = [0.25, 0.75], [0.5, 0.5]
FORWARD = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # 0.143841
REVERSE = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)  # 0.130812
# m = 0.25 q + 0.75 p = (0.3125, 0.6875)
JSD = 0.25 * 0.5 * math.log(0.25 / (0.3125 * 0.6875)) + 0.75 * (
    0.25 * math.log(0.25 / 0.3125) + 0.75 * math.log(0.75 / 0.6875)
)


@pytest.mark.parametrize(
    "function, wanted",
    [(forward_kl, FORWARD), (reverse_kl, REVERSE), (lambda *a: jsd(*a, beta=0.25), JSD)],
    ids=["forward", "reverse", "jsd"],
)
def test_values_by_hand(function, wanted):
    student, teacher = torch.tensor([[HAND_P]]).log(), torch.tensor([[HAND_Q]]).log()
    assert function(student, teacher, torch.ones(1, 1)).item() == pytest.approx(wanted, rel=1e-5)


def test_gradients_by_hand():
    student = torch.tensor([[HAND_P]], dtype=torch.float64).log()
    teacher = torch.tensor([[HAND_Q]], dtype=torch.float64).log()
    one = torch.ones(1, 1)
    assert gradients(lambda s: forward_kl(s, teacher, one), one, student)[1][0].flatten().tolist() == pytest.approx(
        [-0.25, 0.25]
    )
    slope = 0.25 * (math.log(0.5) - REVERSE)
    assert gradients(lambda s: reverse_kl(s, teacher, one), one, student)[1][0].flatten().tolist() == pytest.approx(
        [slope, -slope]
    )


def test_by_products_by_hand():
    """One-hot hidden states of dimension 1 and weights that are log-probabilities give the hand values."""
    p, q = torch.tensor([[0.25], [0.75]]).log(), torch.tensor([[0.5], [0.4999]]).log()
    one = torch.ones(2, 1)
    out = divergence_from_hidden(one, p, one, q, kind="jsd", labels_N=torch.tensor([0, 1]))
    assert out.student_entropy.tolist() == pytest.approx([0.562335] * 2, abs=1e-5)
    assert out.forward_kl.tolist() == pytest.approx([FORWARD] * 2, abs=1e-4)
    assert out.reverse_kl.tolist() == pytest.approx([REVERSE] * 2, abs=1e-4)
    assert out.student_log_prob.tolist() == pytest.approx([math.log(0.25), math.log(0.75)])
    assert out.teacher_log_prob.tolist() == pytest.approx([math.log(0.5)] * 2, abs=1e-3)
    assert out.agreement.tolist() == [False, False]
    assert divergence_from_hidden(one, p, one, p).agreement.all()
    assert not any(item.requires_grad for item in out[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_by_products_do_not_depend_on_the_kind(kind):
    hidden, weight, teacher_hidden, teacher_weight, labels, _ = heads()
    hidden.requires_grad_()
    out = divergence_from_hidden(hidden, weight, teacher_hidden, teacher_weight, kind, 0.7, 0.5, 5, labels)
    student, teacher = hidden @ weight.T, teacher_hidden @ teacher_weight.T
    assert distance(out.forward_kl, reference("forward_kl", student, teacher, temperature=0.7)) < CLOSE
    assert distance(out.reverse_kl, reference("reverse_kl", student, teacher, temperature=0.7)) < CLOSE
    assert distance(-out.student_log_prob, reference("sft", student, None, labels, temperature=0.7)) < CLOSE
    assert distance(-out.teacher_log_prob, reference("sft", teacher, None, labels, temperature=0.7)) < CLOSE
    assert out.agreement.tolist() == (student.argmax(-1) == teacher.argmax(-1)).tolist()
    assert out.value.requires_grad and not any(item.requires_grad for item in out[1:])


def test_sft_needs_no_teacher():
    hidden, weight, _, _, labels, _ = heads()
    out = divergence_from_hidden(hidden, weight, None, None, kind="sft", labels_N=labels)
    assert torch.equal(out.value, -out.student_log_prob)
    assert out.forward_kl is out.reverse_kl is out.teacher_log_prob is out.agreement is None


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 0.3, 3.0, 30.0]), chunk_size=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_properties_of_divergences(seed, scale, chunk_size):
    student, teacher = pair(seed, (1, 8), scale)
    mask = torch.ones(1, 8)
    for function in FROM_LOGITS.values():
        value = function(student, teacher, mask, chunk_size=chunk_size)
        assert torch.allclose(value, function(student, teacher, mask, chunk_size=8), rtol=1e-5, atol=1e-6)
        assert (value >= 0).all()
        assert scale not in (0.3, 3.0) or (value > 1e-4).all()
        shifted = function(student + 1.0, student, mask)
        assert (shifted < 1e-6).all() and (shifted >= 0).all()
    symmetric = jsd(student, teacher, mask)
    assert torch.allclose(symmetric, jsd(teacher, student, mask), atol=1e-6)
    assert (symmetric <= math.log(2) + 1e-6).all()


@given(seed=st.integers(0, 2**31), chunk_size=st.integers(1, N + 1), kind=st.sampled_from(KINDS))
@settings(max_examples=20, deadline=None)
def test_hidden_form_does_not_depend_on_chunks(seed, chunk_size, kind):
    hidden, weight, teacher_hidden, teacher_weight, labels, upstream = heads(seed)

    def with_chunk(size):
        return gradients(
            lambda h, w: (
                divergence_from_hidden(
                    h, w, teacher_hidden, teacher_weight, kind, chunk_size=size, labels_N=labels
                ).value
            ),
            upstream,
            hidden,
            weight,
        )

    (value, grads), (whole, whole_grads) = with_chunk(chunk_size), with_chunk(N)
    assert torch.allclose(value, whole, rtol=1e-5, atol=1e-6)
    assert all(distance(a, b) < CLOSE for a, b in zip(grads, whole_grads, strict=True))


@pytest.mark.parametrize("beta, limit", [(1e-5, forward_kl), (1 - 1e-5, reverse_kl)])
def test_limits_of_jsd(beta, limit):
    student, teacher = pair(scale=1.0, dtype=torch.float64)
    mask = torch.ones(2, 7)
    scaled = jsd(student, teacher, mask, beta=beta) / min(beta, 1 - beta)
    assert distance(scaled, limit(student, teacher, mask)) < 1e-3


@pytest.mark.parametrize("kind", FROM_LOGITS)
def test_tokens_that_neither_model_can_produce_count_as_nothing(kind):
    student, teacher = pair(dtype=torch.float64)
    short = student[..., :-1], teacher[..., :-1]
    student[..., -1] = teacher[..., -1] = -math.inf
    one = torch.ones(2, 7)
    value, (grad,) = gradients(lambda s: FROM_LOGITS[kind](s, teacher, one), one, student)
    wanted, (want,) = gradients(lambda s: FROM_LOGITS[kind](s, short[1], one), one, short[0])
    assert torch.allclose(value, wanted) and torch.allclose(grad[..., :-1], want) and not grad[..., -1].any()


@pytest.mark.parametrize("kind", FROM_LOGITS)
def test_bfloat16_logits_are_computed_in_float32(kind):
    student, teacher = pair(dtype=torch.bfloat16)
    one = torch.ones(2, 7)
    value, (grad,) = gradients(lambda s: FROM_LOGITS[kind](s, teacher, one), one, student)
    wanted, (want,) = gradients(lambda s: reference(kind, s, teacher), one, student.double())
    assert distance(value, wanted) < CLOSE
    assert grad.dtype == torch.bfloat16 and distance(grad, want) < 2**-8


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_hidden_states_stay_close(kind):
    hidden, weight, teacher_hidden, teacher_weight, labels, upstream = heads(dtype=torch.bfloat16)
    value, grads = gradients(
        lambda h, w: (
            divergence_from_hidden(h, w, teacher_hidden, teacher_weight, kind, labels_N=labels, chunk_size=4).value
        ),
        upstream,
        hidden,
        weight,
    )
    teacher = teacher_hidden.double() @ teacher_weight.double().T
    wanted, want_grads = gradients(
        lambda h, w: reference(kind, h @ w.T, teacher, labels), upstream, hidden.double(), weight.double()
    )
    assert value.dtype == torch.float32 and distance(value, wanted) < 0.01
    for grad, want in zip(grads, want_grads, strict=True):
        assert grad.dtype == torch.bfloat16 and distance(grad, want) < 0.02


def test_tied_embeddings():
    _, embedding, teacher_hidden, teacher_weight, labels, _ = heads()

    def loss(divergence, weight):
        return divergence(torch.tanh(weight[labels]), weight)

    one = torch.ones(N)
    _, (grad,) = gradients(
        lambda w: loss(lambda h, v: divergence_from_hidden(h, v, teacher_hidden, teacher_weight).value, w),
        one,
        embedding,
    )
    teacher = teacher_hidden.double() @ teacher_weight.double().T
    _, (want,) = gradients(
        lambda w: loss(lambda h, v: reference("reverse_kl", h @ v.T, teacher), w), one, embedding.double()
    )
    assert distance(grad, want) < CLOSE


def test_autocast_changes_nothing():
    hidden, weight, teacher_hidden, teacher_weight, _, upstream = heads()

    def run():
        return gradients(
            lambda h, w: divergence_from_hidden(h, w, teacher_hidden, teacher_weight).value, upstream, hidden, weight
        )

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run()
    assert torch.equal(plain[0], cast[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], cast[1], strict=True))


def test_a_frozen_output_matrix_and_no_tokens():
    hidden, weight, teacher_hidden, teacher_weight, labels, _ = heads()
    hidden.requires_grad_()
    divergence_from_hidden(hidden, weight, teacher_hidden, teacher_weight).value.sum().backward()
    assert hidden.grad.any() and weight.grad is None
    weight.requires_grad_()
    out = divergence_from_hidden(hidden[:0], weight, teacher_hidden[:0], teacher_weight, labels_N=labels[:0])
    out.value.sum().backward()
    assert all(item.shape == (0,) for item in out) and not weight.grad.any()
