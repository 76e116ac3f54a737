"""Losses between hidden states: against plain float64 formulas, padding, and invariances."""

import math

import numpy as np
import pytest
import torch

from lmkit.functional.distillation_features import (
    first_token_distance,
    fsp_distance,
    hidden_cosine,
    hidden_distance,
    initial_projection,
    similarity_distance,
)

# Rows of 5, 3 and no tokens; the second is padded on its left.
TOKENS = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]) > 0


def fsp(student, teacher, tokens):
    """Both layers of a side out of one tensor."""
    half = student.shape[-1] // 2
    sides = (student[..., :half], student[..., half:], teacher[..., :half], teacher[..., half:])
    return fsp_distance(*sides, tokens)


LOSSES = [
    pytest.param(hidden_distance, id="distance"),
    pytest.param(lambda s, t, m: hidden_distance(s, t, m, normalize=True), id="normalized"),
    pytest.param(hidden_cosine, id="cosine"),
    pytest.param(first_token_distance, id="first"),
    pytest.param(fsp, id="fsp"),
    pytest.param(similarity_distance, id="similarity"),
]
PROJECTED = [hidden_distance, hidden_cosine, first_token_distance]


def drawn(width=6, teacher_width=6):
    return torch.randn(3, 5, width), 2 * torch.randn(3, 5, teacher_width) + 0.5


def rows(student, teacher):
    """The vectors of the real tokens of each row, in float64."""
    return [
        tuple(x[n][TOKENS[n]].double().detach().numpy() for x in (student, teacher))
        for n in range(3)
    ]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def standard(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


REFERENCES = {
    "distance": lambda s, t: ((s - t) ** 2).sum(-1).mean() / t.shape[-1],
    "normalized": lambda s, t: ((standard(s) - standard(t)) ** 2).sum(-1).mean() / t.shape[-1],
    "cosine": lambda s, t: (1 - (unit(s) * unit(t)).sum(-1)).mean(),
    "first": lambda s, t: ((unit(s[0]) - unit(t[0])) ** 2).sum(),
    "fsp": lambda s, t: (
        (s[:, :3].T @ s[:, 3:] / len(s) - t[:, :3].T @ t[:, 3:] / len(t)) ** 2
    ).mean(),
    "similarity": lambda s, t: ((unit(s) @ unit(s).T - unit(t) @ unit(t).T) ** 2).mean(),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_is_that_of_the_real_tokens_in_numpy(loss, request):
    student, teacher = drawn()
    reference = REFERENCES[request.node.callspec.id]
    expected = [reference(s, t) if len(s) else 0.0 for s, t in rows(student, teacher)]
    assert expected[0] > 0.01
    assert np.allclose(loss(student, teacher, TOKENS), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_zero_when_student_equals_teacher(loss):
    _, teacher = drawn()
    student = teacher.clone().requires_grad_()
    found = loss(student, teacher, TOKENS)
    found.sum().backward()
    assert found.abs().max() <= 1e-6 and student.grad.abs().max() <= 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_counts_nothing_whatever_stands_there(loss):
    student, teacher = drawn()
    expected = loss(student, teacher, TOKENS)
    student[~TOKENS], teacher[~TOKENS] = math.nan, math.inf
    student.requires_grad_()
    found = loss(student, teacher, TOKENS)
    found.sum().backward()
    assert torch.equal(found, expected)
    assert torch.isfinite(student.grad).all() and not student.grad[~TOKENS].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_padded_batch_gives_what_its_rows_give_alone(loss):
    student, teacher = drawn()
    found = loss(student, teacher, TOKENS)
    for n in range(2):
        real = TOKENS[n]
        alone = loss(student[n, real][None], teacher[n, real][None], real[real][None])
        assert torch.allclose(found[n], alone[0], atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences_and_reach_the_student_alone(loss):
    student, teacher = (z.double().requires_grad_() for z in drawn())
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, TOKENS), (student,))
    loss(student, teacher, TOKENS).sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32_under_autocast_too(loss):
    student, teacher = (z.bfloat16() for z in drawn())
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(student, teacher.half(), TOKENS)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(student.float(), teacher.half().float(), TOKENS))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_teacher_that_ran_in_inference_mode_serves(loss):
    student, teacher = drawn()
    with torch.inference_mode():
        told = teacher.clone()
    student.requires_grad_()
    loss(student, told, TOKENS).sum().backward()
    assert student.grad.abs().max() > 0.01


@pytest.mark.parametrize("loss", PROJECTED)
def test_projection_brings_a_narrow_student_to_its_teacher(loss):
    student, teacher = drawn(4, 6)
    projection = torch.randn(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(student, teacher, TOKENS, projection)
    brought = torch.einsum("rls,ts->rlt", student.double(), projection.double())
    assert torch.allclose(found.double(), loss(brought, teacher.double(), TOKENS), atol=1e-5)


@pytest.mark.parametrize("loss", PROJECTED)
def test_projection_learns(loss):
    student, teacher = (z.double() for z in drawn(4, 6))
    projection = torch.randn(6, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: loss(student, teacher, TOKENS, w), (projection,))


@pytest.mark.parametrize("loss", PROJECTED)
def test_different_widths_without_a_projection_are_an_error_that_names_it(loss):
    with pytest.raises(ValueError, match="student has width 4, teacher 6: hand in a projection"):
        loss(*drawn(4, 6), TOKENS)
    with pytest.raises(ValueError, match=r"projection must have the shape \[6, 4\].* got \[4, 6\]"):
        loss(*drawn(4, 6), TOKENS, torch.zeros(4, 6))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_mask_that_does_not_fit_is_an_error(loss):
    with pytest.raises(TypeError, match="tokens must be a tensor of bool"):
        loss(*drawn(), TOKENS.long())
    with pytest.raises(ValueError, match=r"tokens must have the shape \[3, 5\].* got \[3, 4\]"):
        loss(*drawn(), TOKENS[:, :4])


def test_normalized_distance_does_not_see_scale_and_shift_of_either_side():
    student, teacher = (z.double() for z in drawn())
    found = hidden_distance(1e3 * student + 4, 1e3 * teacher - 2, TOKENS, normalize=True)
    plain = hidden_distance(student, teacher, TOKENS, normalize=True)
    assert torch.allclose(found, plain, atol=1e-4)


@pytest.mark.parametrize("loss", [hidden_cosine, first_token_distance, similarity_distance])
def test_directions_alone_count(loss):
    student, teacher = drawn()
    lengths = torch.rand(3, 5, 1) + 0.5
    found = loss(student * lengths, 7 * teacher, TOKENS)
    assert torch.allclose(found, loss(student, teacher, TOKENS), atol=1e-6)


def test_opposite_directions_are_as_far_apart_as_can_be():
    student, _ = drawn()
    assert torch.allclose(hidden_cosine(student, -student, TOKENS), torch.tensor([2.0, 2.0, 0.0]))
    first = first_token_distance(student, -student, TOKENS)
    assert torch.allclose(first, torch.tensor([4.0, 4.0, 0.0]))


def test_distance_of_the_first_token_is_twice_its_cosine_distance():
    student, teacher = drawn()
    first = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]) > 0
    found = first_token_distance(student, teacher, TOKENS)
    assert torch.allclose(found, 2 * hidden_cosine(student, teacher, first), atol=1e-6)


def test_cosine_is_exact_for_vectors_that_are_nearly_the_same():
    student = torch.tensor([[[1.0, 1e-4]]])
    found = hidden_cosine(student, torch.tensor([[[1.0, 0.0]]]), torch.tensor([[True]])).item()
    # 1 - cos rounds to 0 in float32.
    assert abs(found - 0.5e-8) < 1e-11


@pytest.mark.parametrize("loss", [hidden_cosine, first_token_distance, similarity_distance])
def test_vectors_of_length_zero_make_no_nan(loss):
    student = torch.zeros(3, 5, 6, requires_grad=True)
    found = loss(student, drawn()[1], TOKENS)
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(student.grad).all()


def test_similarities_need_no_common_width_and_see_no_rotation():
    student, teacher = (z.double() for z in drawn(4, 6))
    rotation, _ = torch.linalg.qr(torch.randn(4, 4).double())
    found = similarity_distance(student @ rotation, teacher, TOKENS)
    assert torch.allclose(found, similarity_distance(student, teacher, TOKENS), atol=1e-12)


def test_flow_needs_a_common_width_and_names_the_projection():
    student, teacher = drawn(4, 6)
    with pytest.raises(ValueError, match=r"width 4, teacher 6: hand in the student's .* projected"):
        fsp_distance(student, teacher, teacher, teacher, TOKENS)


def test_flow_between_layers_of_different_widths_is_fine():
    student, teacher = drawn(4, 4)
    second, teacher_second = drawn(6, 6)
    found = fsp_distance(student, second, teacher, teacher_second.double(), TOKENS)
    s, t = rows(student, teacher)[1]
    s2, t2 = rows(second, teacher_second)[1]
    assert abs(found[1].item() - ((s.T @ s2 / 3 - t.T @ t2 / 3) ** 2).mean()) < 1e-6


@pytest.mark.parametrize(("narrow", "wide"), [(3, 5), (5, 3), (4, 4)])
def test_initial_projection_keeps_what_fits(narrow, wide):
    projection = initial_projection(narrow, wide)
    assert projection.shape == (wide, narrow)
    kept = min(narrow, wide)
    assert projection.sum() == kept and (projection.diagonal() == 1).all()
    hidden = torch.randn(narrow)
    assert torch.equal((projection @ hidden)[:kept], hidden[:kept])


def test_student_that_is_the_first_dimensions_of_its_teacher_starts_at_no_distance_there():
    _, teacher = drawn(6, 6)
    teacher[..., 4:] = 0
    projection = initial_projection(4, 6)
    assert not hidden_distance(teacher[..., :4], teacher, TOKENS, projection).any()


def test_a_width_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="student_width must be at least 1, got 0"):
        initial_projection(0, 4)
