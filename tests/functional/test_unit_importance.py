"""Importances are those of gates that are really there, and of their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmkit.functional.unit_importance import (
    activation_importance,
    gate_gradient,
    magnitude_importance,
    random_importance,
    unit_length,
)


def network(gate: Tensor, weight: Tensor, inputs: Tensor) -> Tensor:
    """A loss behind a layer whose inputs go through a gate for every three of them."""
    gated = inputs * gate.repeat_interleave(3)
    return (gated @ weight.T).tanh().square().mean()


@pytest.mark.parametrize("value", [1.0, 0.0, 0.3])
def test_the_gradient_of_a_gate_is_had_from_that_of_the_weight(value: float) -> None:
    draw = np.random.default_rng(0)
    weight, inputs = (torch.from_numpy(draw.standard_normal(s)) for s in ((5, 12), (7, 12)))
    gate = torch.full([4], 1.0, dtype=torch.float64)
    gate[2] = value
    gate.requires_grad_()
    (expected,) = torch.autograd.grad(network(gate, weight, inputs), gate)
    # What the callback sees: a weight whose columns are scaled, and its gradient.
    gated = (weight * gate.detach().repeat_interleave(3)).requires_grad_()
    ones = torch.ones(4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(network(ones, gated, inputs), gated)
    assert torch.allclose(gate_gradient(weight, gradient, 4), expected, rtol=1e-12, atol=1e-14)
    assert expected.abs().min() > 1e-4


def test_the_gradient_of_a_gate_is_the_loss_that_is_lost_of_what_is_linear() -> None:
    draw = np.random.default_rng(1)
    weight, inputs = (torch.from_numpy(draw.standard_normal(s)) for s in ((2, 6), (9, 6)))
    weight.requires_grad_()
    loss = (inputs @ weight.T).sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    found = gate_gradient(weight.detach(), gradient, 3)
    for unit in range(3):
        without = weight.detach().clone()
        without[:, 2 * unit : 2 * unit + 2] = 0
        lost = loss.detach() - (inputs @ without.T).sum()
        assert lost == pytest.approx(float(found[unit]), rel=1e-10)


def test_the_gradients_of_batches_add_up_and_signs_may_cancel() -> None:
    weight = torch.tensor([[1.0, 1.0]])
    both = [torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, 1.0]])]
    each = [gate_gradient(weight, gradient, 2) for gradient in both]
    assert torch.equal(each[0] + each[1], gate_gradient(weight, both[0] + both[1], 2))
    assert (each[0] + each[1])[0] == 0


def test_the_activation_is_the_mean_of_what_a_neuron_sends_at_most() -> None:
    draw = np.random.default_rng(2)
    weight, inputs = draw.standard_normal((4, 6)), draw.standard_normal((50, 6))
    expected = [
        sum(
            np.mean([abs(x[j]) for x in inputs]) * np.sqrt((weight[:, j] ** 2).sum())
            for j in (2 * u, 2 * u + 1)
        )
        for u in range(3)
    ]
    activity = torch.from_numpy(inputs).abs().mean(0)
    found = activation_importance(activity, torch.from_numpy(weight), 3)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    # Of one neuron that stands alone it is the mean norm of what it adds.
    alone = activation_importance(activity, torch.from_numpy(weight), 6)[1]
    sent = np.mean([np.linalg.norm(weight[:, 1] * x[1]) for x in inputs])
    assert float(alone) == pytest.approx(sent, rel=1e-12)


def test_the_magnitude_is_the_norm_of_all_that_reads_a_unit() -> None:
    draw = np.random.default_rng(3)
    weights = [draw.standard_normal((out, 6)) for out in (4, 5)]
    expected = [
        np.linalg.norm(np.concatenate([w[:, 3 * u : 3 * u + 3].ravel() for w in weights]))
        for u in range(2)
    ]
    found = magnitude_importance([torch.from_numpy(w) for w in weights], 2)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_permutation_of_units_permutes_their_importance() -> None:
    weight, gradient = torch.randn(3, 8), torch.randn(3, 8)
    order = torch.tensor([2, 0, 3, 1])
    columns = (order[:, None] * 2 + torch.arange(2)).flatten()
    for score in (
        lambda w, g: gate_gradient(w, g, 4),
        lambda w, g: activation_importance(g.abs().mean(0), w, 4),
        lambda w, g: magnitude_importance([w], 4),
    ):
        moved = score(weight[:, columns], gradient[:, columns])
        assert torch.allclose(moved, score(weight, gradient)[order], atol=1e-6)


def test_random_scores_depend_on_seed_and_name_alone() -> None:
    first = random_importance(1000, 8, 1, "a")
    assert torch.equal(first, random_importance(1000, 8, 1, "a"))
    assert not torch.equal(first, random_importance(1000, 8, 2, "a"))
    assert not torch.equal(first, random_importance(1000, 8, 1, "b"))
    assert first.min() >= 0 and first.max() < 8
    assert float(first.mean()) == pytest.approx(4.0, abs=0.3)


def test_half_precision_is_added_up_in_single() -> None:
    weight = torch.full([1, 4096], 1.0, dtype=torch.bfloat16)
    assert gate_gradient(weight, weight, 1).tolist() == [4096.0]


def test_layers_have_unit_length_and_nothing_stays_nothing() -> None:
    scores = torch.tensor([1.0, 2.0, 2.0])
    assert float(unit_length(scores).norm()) == pytest.approx(1.0)
    assert torch.allclose(unit_length(7 * scores), unit_length(scores))
    assert unit_length(torch.zeros(3)).tolist() == [0.0] * 3


def test_columns_that_are_not_shared_out_evenly_are_refused() -> None:
    layer = nn.Linear(7, 2)
    with pytest.raises(ValueError, match="7 columns cannot be the units' if there are 2"):
        magnitude_importance([layer.weight], 2)
