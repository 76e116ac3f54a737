"""Losses of classification and regression against independent formulas in float64."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from lmkit.functional.classification import (
    balanced_weights,
    binary_loss,
    class_loss,
    regression_loss,
)

FOCAL = (0.0, 0.5, 1.0, 2.0)
WEIGHTS = torch.tensor([0.3, 2.0, 0.0, 1.5])


def drawn(rows=7, classes=4, fillers=(2, 5)):
    logits = 3 * torch.randn(rows, classes)
    labels = torch.arange(rows) % classes
    labels[list(fillers)] = -100
    return logits, labels


def reference(logits, labels, weights, smoothing, gamma):
    """The formula of the docstring, example by example."""
    p = torch.softmax(logits.double(), -1)
    total = weight = 0.0
    for row, label in zip(p, labels.tolist(), strict=True):
        if label == -100:
            continue
        classes = len(row)
        target = torch.full((classes,), smoothing / classes, dtype=torch.float64)
        target[label] += 1 - smoothing
        loss = -(target * (1 - row) ** gamma * row.log()).sum()
        w = 1.0 if weights is None else float(weights[label])
        total, weight = total + w * float(loss), weight + w
    return total / weight, weight


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", FOCAL)
def test_class_loss_is_its_formula(weights, smoothing, gamma):
    logits, labels = drawn()
    loss, items = class_loss(logits, labels, weights, smoothing, gamma)
    expected = reference(logits, labels, weights, smoothing, gamma)
    assert (loss.item(), items.item()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_class_loss_is_torchs_weighted_cross_entropy(weights):
    logits, labels = drawn()
    loss, _ = class_loss(logits, labels, weights)
    assert torch.allclose(loss, cross_entropy(logits, labels, weights), atol=1e-6)


def test_class_loss_is_torchs_smoothed_cross_entropy():
    logits, labels = drawn()
    loss, _ = class_loss(logits, labels, smoothing=0.2)
    assert torch.allclose(loss, cross_entropy(logits, labels, label_smoothing=0.2), atol=1e-6)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 4.0, 1.0])])
@pytest.mark.parametrize("gamma", FOCAL)
def test_binary_loss_is_its_formula(weights, gamma):
    logits = 3 * torch.randn(6, 3)
    labels = (torch.rand(6, 3) < 0.5).float()
    labels[4] = float("nan")
    loss, items = binary_loss(logits, labels, weights, gamma)
    p, y = torch.sigmoid(logits.double()), labels.double()
    w = 1.0 if weights is None else weights.double()
    each = -w * y * (1 - p) ** gamma * p.log() - (1 - y) * p**gamma * (1 - p).log()
    there = [0, 1, 2, 3, 5]
    assert loss.item() == pytest.approx(float(each[there].mean()), rel=1e-6)
    assert items.item() == 5
    if gamma == 0:
        theirs = binary_cross_entropy_with_logits(logits[there], labels[there], pos_weight=weights)
        assert torch.allclose(loss, theirs, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 1), (5,)])
def test_regression_loss_is_the_mean_squared_error(shape):
    predicted, values = torch.randn(shape), torch.randn(5)
    values[3] = float("nan")
    loss, items = regression_loss(predicted, values)
    there = [0, 1, 2, 4]
    expected = ((predicted.reshape(-1) - values)[there] ** 2).mean()
    assert torch.allclose(loss, expected) and items == 4


def gradient(function, logits, labels, *rest):
    logits = logits.clone().requires_grad_()
    loss, items = function(logits, labels, *rest)
    loss.backward()
    return loss.detach(), items, logits.grad


CASES = {
    "class": (class_loss, *drawn(8, fillers=(0, 1, 2, 6)), None, 0.1, 2.0),
    "weighted": (class_loss, *drawn(8), WEIGHTS),
    "binary": (
        binary_loss,
        torch.randn(8, 3),
        torch.tensor([[0.0, 1, 1]] * 5 + [[float("nan")] * 3] * 3),
        torch.tensor([1.0, 2, 3]),
        1.5,
    ),
    "regression": (
        regression_loss,
        torch.randn(8, 1),
        torch.tensor([1.0, float("nan"), 3, 4, 5, float("nan"), float("nan"), 8]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_two_parts_weighted_by_their_items_give_the_gradient_of_the_whole(case):
    function, logits, labels, *rest = CASES[case]
    loss, items, whole = gradient(function, logits, labels, *rest)
    parts = [gradient(function, logits[s], labels[s], *rest) for s in (slice(0, 3), slice(3, None))]
    assert items == pytest.approx(sum(float(part[1]) for part in parts))
    together = sum(part[0] * part[1] for part in parts) / items
    assert torch.allclose(together, loss, atol=1e-6)
    gathered = torch.cat([part[2] * part[1] for part in parts]) / items
    assert torch.allclose(gathered, whole, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_of_fillers_has_no_loss_and_no_gradient(case):
    function, logits, labels, *rest = CASES[case]
    filler = -100 if labels.dtype == torch.int64 else float("nan")
    loss, items, grad = gradient(function, logits, torch.full_like(labels, filler), *rest)
    assert loss == 0 and items == 0 and torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("case", CASES)
def test_examples_without_a_label_change_neither_loss_nor_gradient(case):
    function, logits, labels, *rest = CASES[case]
    none = labels == -100 if labels.dtype == torch.int64 else labels.isnan()
    there = ~none.reshape(len(labels), -1).all(1)
    assert there.any() and not there.all()
    loss, items, grad = gradient(function, logits, labels, *rest)
    alone, count, expected = gradient(function, logits[there], labels[there], *rest)
    assert torch.allclose(items, count) and torch.allclose(loss, alone, atol=1e-6)
    assert torch.allclose(grad[there], expected, atol=1e-7) and not grad[~there].any()


@pytest.mark.parametrize("gamma", FOCAL)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_sure_network_has_a_finite_gradient(gamma, smoothing):
    for scale in (10.0, 40.0, 1e3):
        logits = torch.tensor([[scale, 0.0, -scale], [scale, 0.0, -scale]])
        loss, _, grad = gradient(class_loss, logits, torch.tensor([0, 2]), None, smoothing, gamma)
        assert loss.isfinite() and grad.isfinite().all()
        labels = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
        loss, _, grad = gradient(binary_loss, logits, labels, None, gamma)
        assert loss.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_are_computed_in_float32(dtype):
    logits, labels = drawn()
    loss, items = class_loss(logits.to(dtype), labels, WEIGHTS)
    assert loss.dtype == items.dtype == torch.float32
    assert torch.equal(loss, class_loss(logits.to(dtype).float(), labels, WEIGHTS)[0])
    assert binary_loss(logits.to(dtype), torch.ones_like(logits))[0].dtype == torch.float32
    assert regression_loss(logits[:, :1].to(dtype), torch.ones(7))[0].dtype == torch.float32


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat([0, 1, 2], [5, 1, 14])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert np.allclose(balanced_weights(torch.tensor([5, 1, 14])), expected)


def test_a_class_without_example_has_no_weight_and_changes_no_other():
    counts = torch.tensor([3, 0, 1])
    assert balanced_weights(counts).tolist() == [pytest.approx(2 / 3), 0, 2]
    assert balanced_weights(torch.zeros(2, dtype=torch.int64)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"focal_gamma": -1.0}, "focal_gamma must be at least 0, got -1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        class_loss(*drawn(), **changes)
    if "focal_gamma" in changes:
        with pytest.raises(ValueError, match=message):
            binary_loss(torch.zeros(1, 2), torch.zeros(1, 2), **changes)
