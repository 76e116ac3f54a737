"""Several teachers as one, how far each is to be trusted, and where a teacher is right."""

import math

import numpy as np
import pytest
import torch

from lmkit.functional.distillation import binary_divergence, logit_divergence
from lmkit.functional.distillation_teachers import (
    mix_binary_teachers,
    mix_teachers,
    mix_values,
    same_choice,
    teacher_confidence,
    teacher_is_right,
)

MIXERS = [
    pytest.param(mix_teachers, lambda z: z.softmax(-1), id="softmax"),
    pytest.param(mix_binary_teachers, torch.sigmoid, id="sigmoid"),
]
BY_ITEM = torch.tensor([[1.0, 0.0, 2.0, 5.0], [3.0, 1.0, 2.0, 0.0], [0.0, 0.0, 4.0, 0.0]])


def drawn(count=3, *shape):
    return [3 * torch.randn(*(shape or (4, 6))) for _ in range(count)]


@pytest.mark.parametrize(("mix", "probabilities"), MIXERS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [[1.0, 2.0, 0.0], BY_ITEM])
def test_probabilities_of_the_mixture_are_the_mean_of_the_probabilities(
    mix, probabilities, temperature, weights
):
    teachers = drawn()
    w = torch.as_tensor(weights).double()
    w = (w if w.dim() == 2 else w[:, None].expand(3, 4)) / w.sum(0)
    expected = sum(
        w[k][:, None] * probabilities(z.double() / temperature) for k, z in enumerate(teachers)
    )
    found = probabilities(mix(teachers, weights, temperature).double() / temperature)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("mix", "probabilities"), MIXERS)
def test_equal_teachers_are_mixed_to_themselves(mix, probabilities):
    z = drawn(1)[0]
    assert torch.allclose(mix([z, z, z], BY_ITEM, 2.0), z, atol=1e-5)
    assert torch.allclose(mix([z], [0.3]), z, atol=1e-5)


def test_a_constant_in_all_logits_is_kept():
    teachers = drawn()
    moved = mix_teachers([z + 5 for z in teachers], BY_ITEM, 2.0)
    assert torch.allclose(moved, mix_teachers(teachers, BY_ITEM, 2.0) + 5, atol=1e-5)


@pytest.mark.parametrize(("mix", "probabilities"), MIXERS)
def test_mixture_of_sure_teachers_is_stable(mix, probabilities):
    teachers = [torch.tensor([[300.0, -300.0]]), torch.tensor([[-300.0, 300.0]])]
    assert torch.allclose(probabilities(mix(teachers, [1.0, 1.0])), torch.tensor([[0.5, 0.5]]))
    agreed = mix([torch.tensor([[300.0, -300.0]]), torch.tensor([[200.0, -200.0]])], [1.0, 1.0])
    assert torch.isfinite(agreed).all() and agreed[0, 0] > 150 and agreed[0, 1] < -150


@pytest.mark.parametrize(("mix", "probabilities"), MIXERS)
def test_minus_infinity_in_all_teachers_that_count_stays(mix, probabilities):
    teachers = drawn()
    for z in teachers[:2]:
        z[:, 4:] = -math.inf
    teachers[0][:, 3] = -math.inf
    teachers[0][2], teachers[1][2] = -math.inf, -math.inf
    mixed = mix(teachers, [1.0, 1.0, 0.0])
    assert (mixed[:, 4:] == -math.inf).all() and (mixed[2] == -math.inf).all()
    assert torch.isfinite(mixed[[0, 1, 3], :4]).all()


@pytest.mark.parametrize("mix", [mix_teachers, mix_binary_teachers, mix_values])
def test_teacher_of_weight_zero_has_no_part_whatever_it_says(mix):
    teachers = drawn()
    alone = mix(teachers[:2], [1.0, 2.0])
    teachers[2][:] = math.nan
    assert torch.allclose(mix(teachers, [1.0, 2.0, 0.0]), alone, atol=1e-5)


@pytest.mark.parametrize("mix", [mix_teachers, mix_binary_teachers, mix_values])
def test_weights_that_are_all_zero_count_the_same(mix):
    teachers = drawn()
    weights = torch.tensor([[1.0, 0, 1, 1], [1, 0, 2, 3], [1, 0, 3, 0]])
    found, even = mix(teachers, weights), mix(teachers, [1.0, 1.0, 1.0])
    assert torch.allclose(found[1], even[1], atol=1e-6)
    assert not torch.allclose(found[2], even[2], atol=1e-2)


@pytest.mark.parametrize("mix", [mix_teachers, mix_binary_teachers, mix_values])
def test_mixture_has_no_gradient_and_at_least_float32(mix):
    teachers = [z.requires_grad_() for z in drawn(2)]
    assert not mix(teachers, torch.ones(2, requires_grad=True)).requires_grad
    assert mix([z.half() for z in teachers], [1.0, 1.0]).dtype == torch.float32
    assert mix([z.double() for z in teachers], [1.0, 1.0]).dtype == torch.float64


def test_student_that_equals_the_mixture_has_nothing_to_learn():
    teachers, valid = drawn(), torch.ones(4, dtype=torch.bool)
    softmax, sigmoid = (mix(teachers, BY_ITEM, 3.0) for mix in (mix_teachers, mix_binary_teachers))
    student = softmax.clone().requires_grad_()
    logit_divergence(student, softmax, valid, 3.0).sum().backward()
    assert student.grad.abs().max() < 1e-6
    # The divergence from the mixture is at most the mean of those from its parts (convexity).
    other = drawn(1)[0]
    for mixed, loss in ((softmax, logit_divergence), (sigmoid, binary_divergence)):
        parts = torch.stack([loss(other, z, valid, 3.0) for z in teachers])
        weights = BY_ITEM / BY_ITEM.sum(0)
        assert (loss(other, mixed, valid, 3.0) <= (weights * parts).sum(0) + 1e-5).all()


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3)])
def test_mixed_values_are_the_weighted_mean(shape):
    teachers = drawn(3, *shape)
    stacked = np.stack([z.double().numpy().reshape(4, -1) for z in teachers])
    expected = np.stack(
        [np.average(stacked[:, n], axis=0, weights=BY_ITEM[:, n].numpy()) for n in range(4)]
    )
    found = mix_values(teachers, BY_ITEM)
    assert found.shape == shape
    assert np.allclose(found.reshape(4, -1), expected, atol=1e-6)


def confidence(logits, label):
    """The weights of one item, from the paper's formula, in Python's own numbers."""
    losses = []
    for z in logits:
        losses.append(math.log(sum(math.exp(v) for v in z)) - z[label])
    total = sum(math.exp(loss) for loss in losses)
    return [(1 - math.exp(loss) / total) / (len(losses) - 1) for loss in losses]


@pytest.mark.parametrize("teachers", [2, 3, 5])
def test_confidence_is_the_formula_of_the_paper(teachers):
    logits, labels = drawn(teachers), torch.tensor([0, 5, 2, 2])
    found = teacher_confidence(logits, labels)
    assert found.shape == (teachers, 4)
    for n, label in enumerate(labels.tolist()):
        expected = confidence([z[n].tolist() for z in logits], label)
        assert np.allclose(found[:, n], expected, atol=1e-6)


def test_confidences_add_up_to_one_and_favour_the_teacher_that_is_right():
    labels = torch.tensor([0, 5, 2, 2])
    good = 6.0 * torch.eye(6)[labels]
    found = teacher_confidence([good, *drawn(2)], labels)
    assert torch.allclose(found.sum(0), torch.ones(4), atol=1e-6)
    assert (found.argmax(0) == 0).all() and found.max() <= 0.5 + 1e-6


def test_confidence_without_a_label_or_of_a_single_teacher_is_even():
    logits, labels = drawn(), torch.tensor([0, -100, 2, -100])
    found = teacher_confidence(logits, labels)
    assert torch.allclose(found[:, [1, 3]], torch.full((3, 2), 1 / 3))
    assert not torch.allclose(found[:, [0, 2]], torch.full((3, 2), 1 / 3), atol=1e-3)
    assert teacher_confidence(logits[:1], labels).tolist() == [[1, 1, 1, 1]]


def test_confidence_does_not_overflow():
    wrong, worse, right = (
        torch.tensor([[0.0, 2e4]]),
        torch.tensor([[-math.inf, 0]]),
        torch.eye(2)[:1],
    )
    label = torch.tensor([0])
    assert teacher_confidence([wrong, right], label).tolist() == [[0], [1]]
    assert teacher_confidence([worse, right], label).tolist() == [[0], [1]]
    assert teacher_confidence([worse, worse, right], label).tolist() == [[0.25], [0.25], [0.5]]


def test_confidence_of_two_labels_takes_their_mean_loss():
    logits = drawn(3, 4, 2, 6)
    labels = torch.tensor([[0, 5], [1, -100], [2, 2], [-100, -100]])
    found = teacher_confidence(logits, labels)
    losses = torch.stack([-z.double().log_softmax(-1) for z in logits])
    both = (losses[:, 0, 0, 0] + losses[:, 0, 1, 5]) / 2
    assert torch.allclose(found[:, 0].double(), (1 - both.softmax(0)) / 2, atol=1e-6)
    one = losses[:, 1, 0, 1]
    assert torch.allclose(found[:, 1].double(), (1 - one.softmax(0)) / 2, atol=1e-6)
    assert torch.allclose(found[:, 3], torch.full((3,), 1 / 3))


def test_confidence_has_no_gradient():
    logits = [z.requires_grad_() for z in drawn()]
    assert not teacher_confidence(logits, torch.zeros(4, dtype=torch.long)).requires_grad


def test_teacher_is_right_where_all_its_first_choices_are_the_labels():
    logits = torch.eye(3)[torch.tensor([[0, 1]] * 5)]
    labels = torch.tensor([[0, 1], [0, 2], [-100, 1], [-100, -100], [0, 1]])
    valid = torch.tensor([True, True, True, True, False])
    assert teacher_is_right(logits, labels, valid).tolist() == [True, False, True, True, False]
    one = teacher_is_right(logits[:, 1], labels[:, 1], valid)
    assert one.tolist() == [True, False, True, True, False]


def test_same_choice_does_not_depend_on_how_sure_the_choice_is():
    student, teacher = drawn(2, 5, 2, 4)
    valid = torch.tensor([True, True, True, True, False])
    assert same_choice(student, 0.1 * student - 3, valid).tolist() == valid.tolist()
    expected = (student.numpy().argmax(-1) == teacher.numpy().argmax(-1)).all(-1) & valid.numpy()
    assert same_choice(student, teacher, valid).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda z: mix_teachers(z, [1.0, 1.0]), r"weights must have the shape \[3\] or \[3, 4\]"),
        (lambda z: mix_teachers(z, [1.0, -0.5, 1.0]), r"weights must be at least 0, got -0.5"),
        (lambda z: mix_values(z, torch.ones(3, 5)), r"got \[3, 5\]"),
        (lambda z: mix_binary_teachers(z, [1.0] * 3, 0.0), "temperature must be above 0"),
        (lambda z: mix_teachers([], []), "at least one teacher"),
        (lambda z: mix_teachers([z[0], z[1][:2]], [1.0, 1.0]), "all of one shape"),
        (lambda z: teacher_confidence(z, torch.zeros(3).long()), r"labels .* \[4\].* got \[3\]"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_it(call, says):
    with pytest.raises(ValueError, match=says):
        call(drawn())
