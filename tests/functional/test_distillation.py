"""Losses between predictions: against plain float64 formulas, limits, invariances and old bugs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmkit.functional.distillation import (
    DIVERGENCES,
    binary_divergence,
    logit_distance,
    logit_divergence,
    value_distance,
)

ALL = torch.ones(6, dtype=torch.bool)
LOSSES = [
    *(
        pytest.param(lambda s, t, v, d=d: logit_divergence(s, t, v, 2.0, d), id=d)
        for d in DIVERGENCES
    ),
    pytest.param(lambda s, t, v: binary_divergence(s, t, v, 2.0), id="binary"),
    pytest.param(logit_distance, id="logits"),
]


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(*shape, generator=generator) for _ in range(2))


def softmax(z):
    e = [math.exp(v - max(z)) for v in z]
    return [v / sum(e) for v in e]


def kl(a, b):
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def plain(student, teacher, temperature, divergence, beta=0.5):
    """The divergence of two lists of logits, in Python's own numbers."""
    p, q = (softmax([v / temperature for v in z]) for z in (student, teacher))
    m = [beta * y + (1 - beta) * x for x, y in zip(p, q, strict=True)]
    return (
        temperature**2
        * {
            "forward": lambda: kl(q, p),
            "reverse": lambda: kl(p, q),
            "jensen_shannon": lambda: beta * kl(q, m) + (1 - beta) * kl(p, m),
            "total_variation": lambda: sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2,
        }[divergence]()
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence_is_that_of_a_plain_loop(divergence, temperature):
    student, teacher = drawn(6, 3, 11)
    found = logit_divergence(student, teacher, ALL, temperature, divergence, beta=0.3)
    for n in range(6):
        each = [
            plain(student[n, m].tolist(), teacher[n, m].tolist(), temperature, divergence, 0.3)
            for m in range(3)
        ]
        assert abs(found[n].item() - np.mean(each)) < 1e-6 * max(1, np.mean(each))


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_zero_when_student_equals_teacher(loss):
    teacher, _ = drawn(6, 50)
    student = teacher.clone().requires_grad_()
    found = loss(student, teacher, ALL)
    found.sum().backward()
    assert found.abs().max() <= 1e-6
    assert student.grad.abs().max() <= 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_items_that_are_not_valid_count_nothing_whatever_stands_there(loss):
    student, teacher = drawn(6, 2, 5)
    valid = torch.tensor([True, False, True, True, False, False])
    garbage = student.clone()
    garbage[1], garbage[4], garbage[5] = math.nan, -math.inf, math.inf
    garbage.requires_grad_()
    teacher_garbage = teacher.masked_fill(~valid[:, None, None], math.nan)
    found = loss(garbage, teacher_garbage, valid)
    found.sum().backward()
    alone = loss(student[valid], teacher[valid], valid[valid])
    assert torch.allclose(found[valid], alone, rtol=1e-6)
    assert torch.equal(found[~valid], torch.zeros(3))
    assert torch.isfinite(garbage.grad).all() and not garbage.grad[~valid].any()


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.5, 0.9])
def test_items_that_are_not_valid_are_exactly_zero_for_every_beta(beta):
    # With 7 equal classes the mixture is rounded, and so not what both sides are.
    student, teacher = drawn(6, 7)
    assert not logit_divergence(student, teacher, ~ALL, 2.0, "jensen_shannon", beta).any()


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_masked_on_both_sides_adds_nothing_to_loss_or_gradient(loss):
    short_student, short_teacher = drawn(6, 2, 5)
    student, teacher = (F.pad(z, (0, 4), value=-math.inf) for z in (short_student, short_teacher))
    for z in (short_student, student):
        z.requires_grad_()
    short, padded = loss(short_student, short_teacher, ALL), loss(student, teacher, ALL)
    assert torch.allclose(short, padded, atol=1e-6)
    short.sum().backward()
    padded.sum().backward()
    assert torch.allclose(student.grad[..., :5], short_student.grad, atol=1e-6)
    assert not student.grad[..., 5:].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_an_item_that_is_masked_altogether_costs_nothing(loss):
    student = torch.full((6, 7), -math.inf, requires_grad=True)
    found = loss(student, student.detach(), ALL)
    found.sum().backward()
    assert found.abs().max() <= 1e-6 and not student.grad.any()


@pytest.mark.parametrize("divergence", ["reverse", "jensen_shannon", "total_variation"])
def test_a_class_that_the_student_alone_excludes_costs_what_the_formula_says(divergence):
    student, teacher = [1.0, 0.0, -math.inf], [0.5, 0.0, 2.0]
    z = torch.tensor([student], requires_grad=True)
    found = logit_divergence(z, torch.tensor([teacher]), ALL[:1], 2.0, divergence)
    found.sum().backward()
    assert abs(found.item() - plain(student, teacher, 2.0, divergence)) < 1e-6
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("loss", [logit_divergence, binary_divergence, logit_distance])
def test_a_class_that_the_student_alone_excludes_is_not_overlooked(loss):
    student, teacher = torch.tensor([[0.0, -math.inf]]), torch.zeros(1, 2)
    assert loss(student, teacher, ALL[:1]).item() > 1e29


@pytest.mark.parametrize("loss", LOSSES)
def test_nan_in_a_valid_item_is_not_hidden(loss):
    student, teacher = drawn(6, 5)
    student[2, 1] = math.nan
    found = loss(student, teacher, ALL)
    assert found.isnan().tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence_does_not_change_when_constants_are_added_to_the_logits(divergence):
    student, teacher = (z.double() for z in drawn(6, 9))
    moved = logit_divergence(student + 7, teacher - 3, ALL, 2.0, divergence)
    assert torch.allclose(
        moved, logit_divergence(student, teacher, ALL, 2.0, divergence), atol=1e-12
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences_and_reach_the_student_alone(loss):
    student, teacher = (z.double().requires_grad_() for z in drawn(3, 2, 4))
    valid = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, valid), (student,))
    loss(student, teacher, valid).sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32_under_autocast_too(loss):
    student, teacher = (z.bfloat16() for z in drawn(6, 9))
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(student, teacher.half(), ALL)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(student.float(), teacher.half().float(), ALL))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_teacher_that_ran_in_inference_mode_serves(loss):
    student, teacher = drawn(6, 9)
    with torch.inference_mode():
        told = teacher.clone()
    student.requires_grad_()
    loss(student, told, ALL).sum().backward()
    assert student.grad.abs().max() > 0.01


@pytest.mark.parametrize("loss", LOSSES)
def test_a_teacher_kept_in_half_precision_gives_nearly_the_same(loss):
    student, teacher = (z / 2 for z in drawn(6, 9))
    live, kept = loss(student, teacher, ALL), loss(student, teacher.half(), ALL)
    assert torch.allclose(live, kept, atol=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_two_halves_of_a_batch_give_what_the_whole_gives(loss):
    student, teacher = drawn(6, 2, 5)
    halves = [loss(student[s], teacher[s], ALL[s]) for s in (slice(0, 2), slice(2, 6))]
    assert torch.allclose(torch.cat(halves), loss(student, teacher, ALL), rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_empty_batch_gives_no_number(loss):
    assert loss(torch.zeros(0, 3), torch.zeros(0, 3), ALL[:0]).shape == (0,)


def test_at_high_temperature_divergence_is_the_distance_of_centred_logits():
    student, teacher = (z.double() for z in drawn(6, 50))
    gap = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    limit = gap.square().sum(-1) / (2 * 50)
    assert torch.allclose(logit_divergence(student, teacher, ALL, 1000.0), limit, rtol=1e-2)
    assert torch.allclose(logit_divergence(student, teacher, ALL, 1e5), limit, rtol=1e-4)


def gradient_norms(divergence):
    student, teacher = (z / 2 for z in drawn(64, 50))
    norms = []
    for temperature in (1.0, 2.0, 4.0, 8.0):
        z = student.clone().requires_grad_()
        valid = torch.ones(64, dtype=torch.bool)
        logit_divergence(z, teacher, valid, temperature, divergence).mean().backward()
        norms.append(z.grad.norm().item())
    return norms


@pytest.mark.parametrize("divergence", ["forward", "jensen_shannon"])
def test_gradient_keeps_its_size_when_the_temperature_changes(divergence):
    norms = gradient_norms(divergence)
    assert max(norms) < 1.3 * min(norms)


def test_gradient_of_reverse_and_of_total_variation_changes_as_the_docstring_says():
    reverse, variation = gradient_norms("reverse"), gradient_norms("total_variation")
    assert max(reverse) < 2 * min(reverse)
    assert 7 < variation[-1] / variation[0] < 9


def test_jensen_shannon_is_symmetric_at_one_half_and_at_most_log_two():
    student, teacher = (20 * z for z in drawn(6, 9))
    found = logit_divergence(student, teacher, ALL, 1.0, "jensen_shannon")
    turned = logit_divergence(teacher, student, ALL, 1.0, "jensen_shannon")
    assert torch.allclose(found, turned, atol=1e-6)
    assert (found <= math.log(2) + 1e-6).all() and found.max() > 0.9 * math.log(2)


def test_jensen_shannon_tends_to_forward_and_reverse():
    student, teacher = (z.double() for z in drawn(6, 9))
    near = 1e-6
    for divergence, beta in (("forward", near), ("reverse", 1 - near)):
        found = logit_divergence(student, teacher, ALL, 2.0, "jensen_shannon", beta) / near
        assert torch.allclose(found, logit_divergence(student, teacher, ALL, 2.0, divergence), 1e-3)


def test_total_variation_of_disjoint_choices_is_one():
    student, teacher = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])
    found = logit_divergence(student, teacher, ALL[:1], 1.0, "total_variation")
    assert abs(found.item() - 1) < 1e-6


# Bugs that were found in the code of other libraries, so that they do not come back in ours.


def test_loss_is_not_a_cross_entropy_that_stays_when_the_student_has_learnt_all():
    teacher = drawn(6, 50)[0] / 2
    wrong = -((teacher / 4).softmax(-1) * (teacher / 4).log_softmax(-1)).sum(-1).mean()
    assert wrong > 3.5
    assert logit_divergence(teacher, teacher, ALL, 4.0).max() <= 1e-6


def test_loss_does_not_lack_the_square_of_the_temperature():
    student, teacher = drawn(6, 50)
    without = F.kl_div(
        (student / 4).log_softmax(-1), (teacher / 4).softmax(-1), reduction="batchmean"
    )
    assert abs(logit_divergence(student, teacher, ALL, 4.0).mean() / without - 16) < 1e-3


@pytest.mark.filterwarnings("ignore:reduction. .mean. divides:UserWarning")
def test_loss_is_not_divided_by_the_number_of_classes():
    student, teacher = drawn(6, 50)
    divided = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="mean")
    assert abs(logit_divergence(student, teacher, ALL).mean() / divided - 50) < 1e-3


def test_loss_of_sequences_is_not_multiplied_by_their_length():
    student, teacher = drawn(6, 16, 50)
    multiplied = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
    assert abs(multiplied / logit_divergence(student, teacher, ALL).mean() - 16) < 1e-3


def test_softmax_is_over_classes_and_not_over_the_second_dimension():
    student, teacher = drawn(6, 4, 7)
    over_time = (
        F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").sum(1).mean(1)
    )
    found = logit_divergence(student, teacher, ALL)
    assert not torch.allclose(found, over_time, rtol=1e-2)
    turned = logit_divergence(student[:, [2, 0, 3, 1]], teacher[:, [2, 0, 3, 1]], ALL)
    assert torch.allclose(found, turned, atol=1e-6)


def test_padding_is_not_counted():
    student, teacher = drawn(6, 5)
    padding = torch.full((9, 5), 3.0)
    valid = torch.cat([ALL, torch.zeros(9, dtype=torch.bool)])
    padded = logit_divergence(torch.cat([student, padding]), torch.cat([teacher, -padding]), valid)
    total = logit_divergence(student, teacher, ALL).sum()
    assert abs(padded.sum() / valid.sum() - total / 6) < 1e-6
    assert abs(padded.mean() - total / 6) > 0.5


# Independent labels, logits and values.


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_binary_divergence_is_that_of_a_plain_loop(temperature):
    student, teacher = drawn(6, 5)
    found = binary_divergence(student, teacher, ALL, temperature)
    for n in range(6):
        each = []
        for s, t in zip(student[n].tolist(), teacher[n].tolist(), strict=True):
            p, q = (1 / (1 + math.exp(-z / temperature)) for z in (s, t))
            each.append(temperature**2 * kl([q, 1 - q], [p, 1 - p]))
        assert abs(found[n].item() - np.mean(each)) < 1e-6


def test_binary_divergence_of_one_label_is_that_of_two_classes():
    student, teacher = drawn(6, 1)
    two = [torch.cat([z, torch.zeros_like(z)], -1) for z in (student, teacher)]
    found = binary_divergence(student, teacher, ALL, 2.0)
    assert torch.allclose(found, logit_divergence(*two, ALL, 2.0), atol=1e-6)


def test_binary_divergence_is_exact_for_very_sure_predictions():
    student, teacher = torch.tensor([[40.0, -90.0]]), torch.tensor([[50.0, 80.0]])
    found = binary_divergence(student, teacher, ALL[:1]).item()
    # q is 1 to within e-22 in both: log q - log p, which is log(1 + e^-40) and 90.
    assert abs(found - 90 / 2) < 1e-5


def test_logit_distance_is_the_mean_square_and_sees_a_constant():
    student, teacher = drawn(6, 3, 5)
    expected = ((student.double() - teacher.double()) ** 2).numpy().mean((1, 2))
    assert np.allclose(logit_distance(student, teacher, ALL), expected, atol=1e-5)
    assert torch.allclose(
        logit_distance(teacher + 2, teacher, ALL), torch.full((6,), 4.0), atol=1e-5
    )


@pytest.mark.parametrize("shapes", [[(6,), (6,)], [(6, 1), (6,)], [(6,), (6, 1)], [(6, 3), (6, 3)]])
def test_value_distance_is_the_mean_square_of_each_item(shapes):
    student, teacher = (drawn(*shape, seed=i)[0] for i, shape in enumerate(shapes))
    gaps = student.double().reshape(6, -1).numpy() - teacher.double().reshape(6, -1).numpy()
    found = value_distance(student, teacher, ALL)
    assert found.shape == (6,)
    assert np.allclose(found, (gaps**2).mean(1), atol=1e-5)


def test_value_distance_is_zero_where_not_valid_and_has_a_gradient_elsewhere():
    student = torch.tensor([1.0, math.nan], requires_grad=True)
    found = value_distance(student, torch.tensor([3.0, math.nan]), torch.tensor([True, False]))
    found.sum().backward()
    assert found.tolist() == [4, 0] and student.grad.tolist() == [-4, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": math.nan}, "temperature must be above 0"),
        ({"divergence": "kl"}, "divergence must be one of forward, .* got 'kl'"),
        ({"divergence": "jensen_shannon", "beta": 0.0}, "beta must lie in .*'forward'"),
        ({"teacher": torch.zeros(6, 4)}, r"one shape, got \[6, 3\] and \[6, 4\]"),
        ({"valid": ALL[:5]}, r"valid must have the shape \[6\].* got \[5\]"),
        ({"valid": torch.ones(6, 3) > 0}, r"valid must have the shape \[6\].* got \[6, 3\]"),
    ],
)
def test_an_option_out_of_range_is_an_error_that_names_it(change, says):
    given = {"student": torch.zeros(6, 3), "teacher": torch.zeros(6, 3), "valid": ALL} | change
    with pytest.raises(ValueError, match=says):
        logit_divergence(**given)


def test_a_mask_of_numbers_is_an_error():
    with pytest.raises(TypeError, match=r"valid must be a tensor of bool, got torch.int64"):
        value_distance(torch.zeros(2), torch.zeros(2), torch.ones(2, dtype=torch.long))
