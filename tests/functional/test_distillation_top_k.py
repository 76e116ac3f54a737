"""A teacher of whom only the likeliest classes are known."""

import math

import numpy as np
import pytest
import torch

from lmkit.functional.distillation import logit_divergence
from lmkit.functional.distillation_top_k import TopK, top_k_divergence, top_k_of

ALL = torch.ones(4, dtype=torch.bool)


def drawn(*shape):
    return 2 * torch.randn(*shape), 2 * torch.randn(*shape)


def log_softmax(z):
    shifted = z - z.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_k_holds_the_likeliest_classes_and_the_rest_as_one(k):
    logits, _ = drawn(4, 3, 7)
    top = top_k_of(logits, k)
    log_p = log_softmax(logits.double().numpy())
    order = np.argsort(-log_p, -1)
    assert np.array_equal(top.ids, order[..., :k])
    assert np.allclose(
        top.log_probabilities, np.take_along_axis(log_p, order[..., :k], -1), atol=1e-6
    )
    rest = np.exp(np.take_along_axis(log_p, order[..., k:], -1)).sum(-1)
    assert np.allclose(top.tail.exp(), rest, atol=1e-6)


def test_tail_of_a_sure_teacher_is_not_lost_in_rounding():
    top = top_k_of(torch.tensor([[100.0, 0.0, 0.0]]), 1)
    assert top.log_probabilities.item() == 0
    assert abs(top.tail.item() - (math.log(2) - 100)) < 1e-4


def test_tail_of_all_classes_is_minus_infinity():
    assert top_k_of(torch.zeros(2, 3), 3).tail.tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_divergence_is_that_of_the_buckets_in_numpy(k):
    student, teacher = drawn(4, 3, 9)
    log_p, log_q = (log_softmax(z.double().numpy()) for z in (student, teacher))
    ids = np.argsort(-log_q, -1)
    buckets = []
    for log_x in (log_p, log_q):
        x = np.exp(np.take_along_axis(log_x, ids, -1))
        buckets.append(np.concatenate([x[..., :k], x[..., k:].sum(-1, keepdims=True)], -1))
    p, q = buckets
    expected = (q * np.log(q / p)).sum(-1).mean(-1)
    assert np.allclose(top_k_divergence(student, top_k_of(teacher, k), ALL), expected, atol=1e-6)


def test_divergence_grows_with_k_up_to_that_of_all_classes():
    student, teacher = drawn(4, 9)
    full = logit_divergence(student, teacher, ALL)
    found = torch.stack(
        [top_k_divergence(student, top_k_of(teacher, k), ALL) for k in range(1, 10)]
    )
    assert (found >= -1e-6).all()
    assert (found.diff(dim=0) >= -1e-6).all()
    assert torch.allclose(found[-1], full, atol=1e-6)
    assert found[0].max() < full.max()


def test_gradient_at_all_classes_is_that_of_the_full_divergence():
    student, teacher = drawn(4, 9)
    one, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    top_k_divergence(one, top_k_of(teacher, 9), ALL).sum().backward()
    logit_divergence(other, teacher, ALL).sum().backward()
    assert torch.allclose(one.grad, other.grad, atol=1e-6)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_loss_and_gradient_are_zero_when_student_equals_teacher(k):
    teacher, _ = drawn(4, 9)
    student = teacher.clone().requires_grad_()
    found = top_k_divergence(student, top_k_of(teacher, k), ALL)
    found.sum().backward()
    assert found.abs().max() <= 1e-6 and student.grad.abs().max() <= 1e-6


def test_gradients_are_those_of_finite_differences():
    student, teacher = (z.double() for z in drawn(4, 2, 5))
    top = top_k_of(teacher, 2)
    assert top.tail.dtype == torch.float64
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: top_k_divergence(s, top, ALL), (student,))


def test_teacher_gets_no_gradient():
    teacher = torch.randn(4, 5, requires_grad=True)
    assert not any(part.requires_grad for part in top_k_of(teacher, 2))
    top = TopK(*(p.requires_grad_(p.is_floating_point()) for p in top_k_of(teacher, 2)))
    top_k_divergence(torch.randn(4, 5, requires_grad=True), top, ALL).sum().backward()
    assert top.log_probabilities.grad is None and top.tail.grad is None


def test_a_teacher_that_ran_in_inference_mode_serves():
    student, teacher = drawn(4, 5)
    student.requires_grad_()
    with torch.inference_mode():
        top = top_k_of(teacher.clone(), 2)
    top_k_divergence(student, top, ALL).sum().backward()
    assert student.grad.abs().max() > 0.01


@pytest.mark.parametrize("k", [2, 4, 6])
def test_classes_that_are_masked_on_both_sides_add_nothing(k):
    student, teacher = drawn(4, 6)
    student[:, 3:], teacher[:, 3:] = -math.inf, -math.inf
    student.requires_grad_()
    found = top_k_divergence(student, top_k_of(teacher, k), ALL)
    found.sum().backward()
    short = top_k_of(teacher[:, :3], min(k, 3))
    assert torch.allclose(found, top_k_divergence(student[:, :3], short, ALL), atol=1e-6)
    assert torch.isfinite(student.grad).all() and not student.grad[:, 3:].any()


def test_items_that_are_not_valid_count_nothing_whatever_stands_there():
    student, teacher = drawn(4, 6)
    valid = torch.tensor([True, False, True, False])
    top = top_k_of(teacher, 2)
    expected = top_k_divergence(student, top, ALL)
    student[1] = math.nan
    top.ids[3], top.log_probabilities[3], top.tail[1] = 10**6, math.nan, math.nan
    student.requires_grad_()
    found = top_k_divergence(student, top, valid)
    found.sum().backward()
    assert torch.equal(found, expected.where(valid, 0.0))
    assert torch.isfinite(student.grad).all() and not student.grad[~valid].any()


def test_a_cache_in_half_precision_gives_nearly_the_same_and_is_a_distribution_still():
    teacher, _ = drawn(4, 300)
    top = top_k_of(teacher, 20)
    cached = TopK(top.ids.int(), top.log_probabilities.half(), top.tail.half())
    assert top_k_divergence(teacher.half(), cached, ALL).dtype == torch.float32
    # As stored, the buckets add up to 1 only roughly, and the loss would be off by as much.
    stored = cached.log_probabilities.float().exp().sum(-1) + cached.tail.float().exp()
    assert (stored - 1).abs().max() > 1e-5
    assert top_k_divergence(teacher, cached, ALL).abs().max() < 1e-6
    student, _ = drawn(4, 300)
    exact = top_k_divergence(student, top, ALL)
    assert torch.allclose(top_k_divergence(student, cached, ALL), exact, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("k", [0, 6])
def test_k_out_of_range_is_an_error(k):
    with pytest.raises(ValueError, match=rf"k must lie in \[1, 5\].* got {k}"):
        top_k_of(torch.zeros(2, 5), k)


def test_shapes_that_do_not_fit_are_an_error():
    top = top_k_of(torch.zeros(4, 3, 5), 2)
    with pytest.raises(ValueError, match=r"needs ids and log_probabilities of shape \[4, 2, 'k'\]"):
        top_k_divergence(torch.zeros(4, 2, 5), top, ALL)
