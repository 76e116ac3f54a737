"""Divergences both sides learn from: against Python's own numbers, limits and invariances."""

import math

import pytest
import torch

from lmkit.functional.consistency import (
    SIGNALS,
    as_classes,
    class_count,
    confidence,
    jensen_shannon,
    signal_threshold,
    squared_difference,
    symmetric_divergence,
    target_likelihood,
)

VALID = torch.ones(5, dtype=torch.bool)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def softmax(z):
    e = [math.exp(v - max(z)) for v in z]
    return [v / sum(e) for v in e]


def kl(a, b):
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def test_symmetric_divergence_is_the_sum_of_both_in_a_plain_loop():
    p, q = drawn(5, 4), drawn(5, 4, seed=1)
    made = symmetric_divergence(p, q, VALID)
    for i in range(5):
        a, b = softmax(p[i].tolist()), softmax(q[i].tolist())
        assert made[i].item() == pytest.approx(kl(a, b) + kl(b, a), rel=1e-12)


def test_jensen_shannon_is_that_of_a_plain_loop_for_two_and_three_views():
    views = [drawn(5, 4, seed=s) for s in range(3)]
    for count in (2, 3):
        made = jensen_shannon(views[:count], VALID)
        for i in range(5):
            each = [softmax(v[i].tolist()) for v in views[:count]]
            middle = [sum(column) / count for column in zip(*each, strict=True)]
            expected = sum(kl(p, middle) for p in each) / count
            assert made[i].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_divergences_are_symmetric_and_zero_on_equals_to_the_last_bit(dtype):
    p, q = drawn(5, 4).to(dtype), drawn(5, 4, seed=1).to(dtype)
    assert torch.equal(symmetric_divergence(p, q, VALID), symmetric_divergence(q, p, VALID))
    for divergence in (symmetric_divergence, squared_difference):
        assert not divergence(p, p.clone(), VALID).any()
    assert torch.allclose(jensen_shannon([p, q], VALID), jensen_shannon([q, p], VALID))
    assert jensen_shannon([p, p.clone()], VALID).abs().max() < 1e-6


def test_both_sides_get_the_gradient_that_finite_differences_give():
    p, q = (drawn(5, 3, seed=s).requires_grad_() for s in (0, 1))
    for divergence in (
        symmetric_divergence,
        squared_difference,
        lambda a, b, v: jensen_shannon([a, b], v),
    ):
        assert torch.autograd.gradcheck(lambda a, b, d=divergence: d(a, b, VALID), (p, q))


def test_a_constant_added_to_the_logits_changes_nothing():
    p, q = drawn(5, 4), drawn(5, 4, seed=1)
    first, moved = symmetric_divergence(p, q, VALID), symmetric_divergence(p + 7, q - 3, VALID)
    assert torch.allclose(first, moved, rtol=1e-12)


def test_symmetric_divergence_is_twice_the_quadratic_form_of_fisher_nearby():
    # KL(p || p') of logits that differ by d is d' F d / 2, F = diag(p) - p p'.
    z, d = drawn(1, 4), 1e-4 * drawn(1, 4, seed=2)
    p = z.softmax(-1).squeeze()
    fisher = torch.diag(p) - p.outer(p)
    expected = (d @ fisher @ d.T).item()
    made = symmetric_divergence(z, z + d, VALID[:1]).item()
    assert made == pytest.approx(expected, rel=1e-3)


def test_yes_or_no_is_a_choice_of_two():
    a, b = drawn(5, 3), drawn(5, 3, seed=1)
    made = symmetric_divergence(as_classes(a), as_classes(b), VALID)
    for i in range(5):
        expected = 0.0
        for x, y in zip(a[i].tolist(), b[i].tolist(), strict=True):
            p, q = 1 / (1 + math.exp(-x)), 1 / (1 + math.exp(-y))
            expected += kl([p, 1 - p], [q, 1 - q]) + kl([q, 1 - q], [p, 1 - p])
        assert made[i].item() == pytest.approx(expected / 3, rel=1e-10)


def test_masked_classes_and_items_reach_neither_value_nor_gradient():
    p, q = drawn(5, 4), drawn(5, 4, seed=1)
    p[:, 3] = q[:, 3] = -torch.inf
    valid = torch.tensor([True, True, False, True, True])
    p[2], q[2] = torch.nan, torch.inf
    p.requires_grad_()
    for divergence in (symmetric_divergence, lambda a, b, v: jensen_shannon([a, b], v)):
        p.grad = None
        made = divergence(p, q, valid)
        made.sum().backward()
        assert made[2] == 0 and p.grad.isfinite().all() and not p.grad[2].any()
        expected = divergence(p[valid][:, :3], q[valid][:, :3], VALID[:4])
        assert torch.allclose(made[valid], expected, rtol=1e-12)


def test_several_distributions_of_an_item_are_averaged():
    p, q = drawn(5, 2, 4), drawn(5, 2, 4, seed=1)
    parts = [symmetric_divergence(p[:, n], q[:, n], VALID) for n in range(2)]
    assert torch.allclose(symmetric_divergence(p, q, VALID), (parts[0] + parts[1]) / 2)


def test_squared_difference_is_the_square_of_the_difference():
    a, b = drawn(5, 2), drawn(5, 2, seed=1)
    expected = [
        sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) / 2
        for p, q in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert squared_difference(a, b, VALID).tolist() == pytest.approx(expected)


def test_confidence_is_the_largest_probability_of_the_least_sure_distribution():
    z = drawn(5, 2, 4)
    expected = [min(max(softmax(part)) for part in item) for item in z.tolist()]
    assert confidence(z).tolist() == pytest.approx(expected)
    assert confidence(torch.zeros(2, 4)).tolist() == [0.25, 0.25]


def test_likelihood_of_labels_is_that_of_a_plain_loop():
    z, labels = drawn(3, 4), torch.tensor([1, -100, 3])
    made = target_likelihood(z, labels, -100).tolist()
    assert made[0] == pytest.approx(math.log(softmax(z[0].tolist())[1]))
    assert made[1] == 0 and made[2] == pytest.approx(math.log(softmax(z[2].tolist())[3]))
    assert class_count(torch.tensor([[0.0, -torch.inf, 2.0]])).item() == 2


@pytest.mark.parametrize("schedule", SIGNALS)
def test_the_threshold_rises_from_chance_to_certainty(schedule):
    steps = [signal_threshold(n / 50, torch.tensor(4), schedule).item() for n in range(51)]
    assert steps == sorted(steps)
    # exp begins and log ends within e^-5 of the bound.
    assert steps[0] == pytest.approx(0.25, abs=0.006) and steps[-1] == pytest.approx(1.0, abs=0.006)
    share = {"linear": 0.5, "exp": math.exp(-2.5), "log": 1 - math.exp(-2.5)}[schedule]
    assert steps[25] == pytest.approx(share * 0.75 + 0.25)


def test_wrong_shapes_types_and_names_are_refused():
    with pytest.raises(ValueError, match="predictions of one shape"):
        symmetric_divergence(drawn(5, 4), drawn(5, 3), VALID)
    with pytest.raises(TypeError, match="valid must be a tensor of bool"):
        jensen_shannon([drawn(5, 4)] * 2, torch.ones(5))
    with pytest.raises(ValueError, match="signal must be one of linear, exp, log, got 'cosine'"):
        signal_threshold(0.5, torch.tensor(4), "cosine")
