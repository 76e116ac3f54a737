"""Losses between attentions and relations: plain float64 formulas, padding, rotations, packing."""

import math

import numpy as np
import pytest
import torch

from lmkit.functional.distillation_relations import (
    attention_divergence,
    relation_divergence,
    relation_heads,
)

# Rows of 5, 3 and no tokens; the second is padded on its left.
TOKENS = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]) > 0


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(q, p):
    """Of the last dimension, with 0 log 0 = 0."""
    return np.where(q > 0, q * (np.log(np.where(q > 0, q, 1)) - np.log(p)), 0).sum(-1)


def attention(heads, tokens=TOKENS, dtype=torch.float32):
    """Maps as a network gives them: padded keys get 0, and padded queries attend like others."""
    scores = 2 * torch.randn(len(tokens), heads, tokens.shape[1], tokens.shape[1], dtype=dtype)
    empty = ~tokens.any(-1)
    scores = scores.masked_fill(~(tokens | empty[:, None])[:, None, None, :], -math.inf)
    return scores.softmax(-1)


def states(*widths):
    return tuple(torch.randn(3, 5, width) for width in widths)


# Attention probabilities.


@pytest.mark.parametrize(("heads", "teacher_heads"), [(2, 2), (2, 3)])
def test_attention_divergence_is_that_of_a_plain_loop(heads, teacher_heads):
    student, teacher = attention(heads), attention(teacher_heads)
    found = attention_divergence(student, teacher, TOKENS)
    for n in range(2):
        real = TOKENS[n].numpy()
        p, q = (x[n].double().numpy()[:, real][:, :, real] for x in (student, teacher))
        if heads != teacher_heads:
            p, q = p.mean(0, keepdims=True), q.mean(0, keepdims=True)
        assert abs(found[n].item() - kl(q, p).mean()) < 1e-6
    assert found[2] == 0


def test_attention_is_not_put_through_a_second_softmax():
    student, teacher = torch.tensor([[0.9, 0.1]] * 2), torch.tensor([[0.2, 0.8]] * 2)
    found = attention_divergence(student[None, None], teacher[None, None], torch.ones(1, 2) > 0)
    assert abs(found.item() - (0.2 * math.log(0.2 / 0.9) + 0.8 * math.log(8))) < 1e-6


def test_attention_divergence_and_gradient_are_zero_when_student_equals_teacher():
    teacher = attention(2)
    student = teacher.clone().requires_grad_()
    found = attention_divergence(student, teacher, TOKENS)
    found.sum().backward()
    assert found.abs().max() <= 1e-6 and student.grad.abs().max() <= 1e-6


def test_padded_queries_and_keys_count_nothing_whatever_stands_there():
    student, teacher = attention(2), attention(2)
    expected = attention_divergence(student, teacher, TOKENS)
    pairs = (TOKENS[:, None, :, None] & TOKENS[:, None, None, :]).expand_as(student)
    student, teacher = student.masked_fill(~pairs, math.nan), teacher.masked_fill(~pairs, 7.0)
    student.requires_grad_()
    found = attention_divergence(student, teacher, TOKENS)
    found.sum().backward()
    assert torch.equal(found, expected)
    assert torch.isfinite(student.grad).all() and not student.grad[~pairs].any()


def test_keys_that_are_left_out_leave_a_distribution():
    teacher = torch.full((1, 1, 3, 3), 1 / 3)
    tokens = torch.tensor([[True, True, False]])
    without = torch.tensor([[0.5, 0.5, 0.0]]).expand(3, 3)[None, None]
    assert attention_divergence(without, teacher, tokens).abs().max() <= 1e-6
    assert attention_divergence(teacher, without, tokens).abs().max() <= 1e-6


def test_exact_zeros_on_both_sides_add_nothing_to_loss_or_gradient():
    causal = torch.ones(5, 5).tril() > 0
    logits = torch.randn(2, 1, 2, 5, 5).masked_fill(~causal, -math.inf)
    scores = logits[0].clone().requires_grad_()
    tokens = TOKENS[:1]
    found = attention_divergence(scores.softmax(-1), logits[1].softmax(-1), tokens)
    found.sum().backward()
    p, q = (softmax(x.double().numpy()) for x in logits)
    expected = np.mean([kl(q[..., i, : i + 1], p[..., i, : i + 1]) for i in range(5)])
    assert abs(found.item() - expected) < 1e-6
    assert torch.isfinite(scores.grad).all() and not scores.grad[..., ~causal].any()


def test_a_zero_in_the_student_alone_costs_much_and_not_infinitely_much():
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None].requires_grad_()
    found = attention_divergence(student, torch.full((1, 1, 2, 2), 0.5), torch.ones(1, 2) > 0)
    found.sum().backward()
    assert 5 < found.item() < 20 and torch.isfinite(student.grad).all()


def test_gradients_of_attention_are_those_of_finite_differences():
    tokens = TOKENS[:2, :4]
    scores = torch.randn(2, 2, 4, 4).double().requires_grad_()
    teacher = attention(3, tokens, torch.float64).requires_grad_()

    def loss(z):
        return attention_divergence(z.softmax(-1), teacher, tokens)

    assert torch.autograd.gradcheck(loss, (scores,))
    loss(scores).sum().backward()
    assert teacher.grad is None


# Relations.


def plain_relations(x, heads, allowed):
    """Softmax of scaled products, head by head and row by row, `[heads, queries, keys]`."""
    width = x.shape[-1] // heads
    found = []
    for h in range(heads):
        part = x[:, h * width : (h + 1) * width]
        scores = part @ part.T / math.sqrt(width)
        found.append(softmax(np.where(allowed, scores, -np.inf)))
    return np.stack(found)


@pytest.mark.parametrize(("width", "teacher_width", "heads"), [(8, 8, 2), (8, 12, 4), (6, 9, 1)])
def test_relation_divergence_is_that_of_a_plain_loop(width, teacher_width, heads):
    student, teacher = states(width, teacher_width)
    found = relation_divergence(student, teacher, TOKENS, heads)
    for n in range(2):
        sides = [x[n][TOKENS[n]].double().numpy() for x in (student, teacher)]
        p, q = (plain_relations(x, heads, np.ones((len(x), len(x)), bool)) for x in sides)
        each = np.where(q > 0, q * np.log(np.where(q > 0, q, 1) / p), 0).sum(-1)
        assert abs(found[n].item() - each.mean()) < 1e-6
    assert found[2] == 0


def test_relation_divergence_and_gradient_are_zero_when_student_equals_teacher():
    (teacher,) = states(8)
    student = teacher.clone().requires_grad_()
    found = relation_divergence(student, teacher, TOKENS, 2)
    found.sum().backward()
    assert found.abs().max() <= 1e-6 and student.grad.abs().max() <= 1e-6


def test_relations_do_not_see_a_common_rotation_inside_each_head():
    student, teacher = (x.double() for x in states(8, 12))
    rotations = [torch.linalg.qr(torch.randn(4, 4).double())[0] for _ in range(2)]
    turned = student @ torch.block_diag(*rotations)
    expected = relation_divergence(student, teacher, TOKENS, 2)
    assert torch.allclose(relation_divergence(turned, teacher, TOKENS, 2), expected, atol=1e-12)
    across = student @ torch.linalg.qr(torch.randn(8, 8).double())[0]
    assert not torch.allclose(relation_divergence(across, teacher, TOKENS, 2), expected, atol=1e-3)


def test_relations_of_a_padded_batch_are_those_of_its_rows_alone():
    student, teacher = states(8, 12)
    found = relation_divergence(student, teacher, TOKENS, 2)
    for n in range(2):
        real = TOKENS[n]
        sides = student[n, real][None], teacher[n, real][None]
        alone = relation_divergence(*sides, real[real][None], 2)
        assert torch.allclose(found[n], alone[0], atol=1e-6)


def test_padding_counts_nothing_in_relations_whatever_stands_there():
    student, teacher = states(8, 8)
    expected = relation_divergence(student, teacher, TOKENS, 2)
    student[~TOKENS], teacher[~TOKENS] = math.nan, math.inf
    student.requires_grad_()
    found = relation_divergence(student, teacher, TOKENS, 2)
    found.sum().backward()
    assert torch.equal(found, expected)
    assert torch.isfinite(student.grad).all() and not student.grad[~TOKENS].any()


def test_packed_texts_relate_as_they_do_in_rows_of_their_own():
    student, teacher = states(8, 12)
    segments = torch.tensor([[0, 0, 1, 1, 1], [7, 3, 3, 5, 7], [0, 0, 0, 0, 0]])
    student.requires_grad_()
    found = relation_divergence(student, teacher, TOKENS, 2, segments)
    whole = torch.ones(1, 5, dtype=torch.bool)

    def alone(n, places):
        sides = student[n, places][None], teacher[n, places][None]
        return relation_divergence(*sides, whole[:, : len(places)], 2).item()

    first = (2 * alone(0, [0, 1]) + 3 * alone(0, [2, 3, 4])) / 5
    second = (2 * alone(1, [1, 2]) + 1 * alone(1, [3])) / 3
    assert np.allclose(found.detach(), [first, second, 0], atol=1e-6)
    found.sum().backward()
    assert torch.isfinite(student.grad).all()


def test_gradients_of_relations_are_those_of_finite_differences():
    student, teacher = (x.double().requires_grad_() for x in states(4, 6))

    def loss(x):
        return relation_divergence(x, teacher, TOKENS, 2)

    assert torch.autograd.gradcheck(loss, (student,))
    loss(student).sum().backward()
    assert teacher.grad is None


def test_half_precision_is_computed_in_float32_under_autocast_too():
    student, teacher = (x.bfloat16() for x in states(8, 12))
    maps, teacher_maps = attention(2).bfloat16(), attention(2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        relations = relation_divergence(student, teacher, TOKENS, 2)
        attentions = attention_divergence(maps, teacher_maps, TOKENS)
    assert relations.dtype == attentions.dtype == torch.float32
    assert torch.equal(relations, relation_divergence(student.float(), teacher.float(), TOKENS, 2))
    exact = attention_divergence(maps.float(), teacher_maps.float(), TOKENS)
    assert torch.equal(attentions, exact)


def test_a_teacher_that_ran_in_inference_mode_serves():
    (student, teacher), maps, teacher_maps = states(8, 12), attention(2), attention(2)
    with torch.inference_mode():
        told, told_maps = teacher.clone(), teacher_maps.clone()
    student.requires_grad_(), maps.requires_grad_()
    relation_divergence(student, told, TOKENS, 2).sum().backward()
    attention_divergence(maps, told_maps, TOKENS).sum().backward()
    assert student.grad.any() and maps.grad.any()


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ((384, 768), 48),
        ((768, 768), 48),
        ((312, 768), 24),
        ((32, 64), 4),
        ((8, 64), 1),
        ((35, 36), 1),
    ],
)
def test_relation_heads_are_the_most_that_suit_both_widths(widths, expected):
    fits = [
        h
        for h in range(1, 49)
        if not any(w % h for w in widths) and min(w // h for w in widths) >= 8
    ]
    assert relation_heads(*widths) == relation_heads(*widths[::-1]) == max(fits) == expected


def test_widths_that_no_relation_head_suits_are_an_error_that_names_them():
    with pytest.raises(ValueError, match="student's width 6 and the teacher's 64"):
        relation_heads(6, 64)


@pytest.mark.parametrize("heads", [0, 3, 4])
def test_heads_that_do_not_divide_both_widths_are_an_error(heads):
    with pytest.raises(ValueError, match=rf"width 8 and the teacher's 10, got {heads}; take"):
        relation_divergence(*states(8, 10), TOKENS, heads)


def test_maps_and_masks_that_do_not_fit_are_an_error():
    maps = torch.full((3, 2, 5, 5), 0.2)
    with pytest.raises(ValueError, match=r"student must have the shape .* got \[3, 2, 5\]"):
        attention_divergence(maps[..., 0], maps, TOKENS)
    with pytest.raises(ValueError, match=r"tokens must have the shape \[3, 5\].* got \[2, 5\]"):
        attention_divergence(maps, maps, TOKENS[:2])
    with pytest.raises(TypeError, match="tokens must be a tensor of bool"):
        attention_divergence(maps, maps, TOKENS.long())
    with pytest.raises(ValueError, match=r"segments must have the shape of tokens, \[3, 5\], got"):
        relation_divergence(*states(8, 8), TOKENS, 2, torch.zeros(5, dtype=torch.long))
