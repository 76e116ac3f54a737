"""What every distillation loss does first and last."""

import math

import pytest
import torch

from lmkit.functional.distillation_inputs import (
    FLOOR,
    broadcast_mask,
    check_mask,
    floored,
    item_mean,
    real_pair,
    relative_entropy,
    token_mean,
    wide_dtype,
)


def test_wide_type_is_at_least_float32_and_keeps_float64():
    half, double = torch.zeros(1).half(), torch.zeros(1).double()
    assert wide_dtype(half) == torch.float32
    assert wide_dtype(half, double) == torch.float64


def test_real_pair_detaches_the_teacher_and_hides_what_is_not_real():
    student = torch.tensor([[[1.0, 2.0], [math.nan, 3.0]]], requires_grad=True)
    teacher = torch.tensor([[[4.0], [math.inf]]], requires_grad=True)
    real = torch.tensor([[True, False]])
    one, other = real_pair(student, teacher, "tokens", real, 2)
    assert one.tolist() == [[[1, 2], [0, 0]]] and other.tolist() == [[[4], [0]]]
    assert not other.requires_grad
    one.square().sum().backward()
    assert student.grad.tolist() == [[[2, 4], [0, 0]]]


def test_floor_has_a_probability_of_exactly_nothing_in_both_types():
    for dtype in (torch.float32, torch.float64):
        z = floored(torch.tensor([[0.0, -math.inf]], dtype=dtype), torch.tensor([True]))
        assert z.softmax(-1).tolist() == [[1, 0]]
        assert relative_entropy(z.log_softmax(-1), z.log_softmax(-1)).item() == 0
    assert floored(torch.tensor([[0.0, -(10.0**29)]]), torch.tensor([True]))[0, 1] > FLOOR


def test_relative_entropy_of_powers_of_two_is_known():
    log_a, log_b = (torch.tensor(p).double().log() for p in ([0.5, 0.5], [0.25, 0.75]))
    assert abs(relative_entropy(log_a, log_b).item() - 0.5 * math.log(4 / 3)) < 1e-12
    assert abs(relative_entropy(log_b, log_a).item() - (0.75 * math.log(3) - math.log(2))) < 1e-12


def test_means_are_over_all_but_the_first_dimension_and_over_real_tokens():
    each = torch.arange(12.0).reshape(2, 2, 3)
    assert item_mean(each).tolist() == [2.5, 8.5]
    assert item_mean(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    tokens = torch.tensor([[True, True, False], [False, False, False]])
    assert token_mean(each[:, 0], tokens).tolist() == [0.5, 0]


def test_mask_gets_as_many_dimensions_as_the_tensor():
    mask = torch.tensor([[True, False]])
    assert broadcast_mask(mask, torch.zeros(1, 2, 5, 5)).shape == (1, 2, 1, 1)


def test_mask_of_one_side_only_names_that_side():
    with pytest.raises(ValueError, match=r"tokens must have the shape \[2, 4\], for the teacher"):
        check_mask("tokens", torch.ones(2, 3) > 0, 2, torch.zeros(2, 3, 5), torch.zeros(2, 4, 5))
