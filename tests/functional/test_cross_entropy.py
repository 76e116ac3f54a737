"""Cross-entropy over tokens."""

import numpy as np
import pytest
import torch

from lmkit.functional import accuracy, token_cross_entropy


def test_loss_is_the_mean_negative_log_likelihood_in_numpy() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(3, 5, 7)) * 4
    labels = generator.integers(0, 7, (3, 5))
    labels[0, :3] = -100
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    chosen = [log_p[i, j, labels[i, j]] for i, j in np.argwhere(labels != -100)]
    loss, count = token_cross_entropy(torch.tensor(logits).float(), torch.tensor(labels))
    assert count.item() == 12
    assert abs(loss.item() + np.mean(chosen)) < 1e-6


def test_no_label_gives_zero_with_a_gradient_of_zero() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss, count = token_cross_entropy(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0 and count.item() == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_without_a_label_change_neither_loss_nor_gradient(smoothing: float) -> None:
    logits = torch.randn(5, 4)
    labels = torch.tensor([2, 0, 3, -100, -100])

    def of(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        given = logits[:rows].clone().requires_grad_()
        loss, count = token_cross_entropy(given, labels[:rows], smoothing)
        loss.backward()
        assert count.item() == 3 and given.grad is not None
        return loss.detach(), given.grad

    (alone, expected), (both, found) = of(3), of(5)
    assert torch.equal(alone, both) and torch.equal(found[:3], expected) and not found[3:].any()


def test_choices_that_are_lacking_make_no_nan_in_rows_without_a_label() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf]] * 2, requires_grad=True)
    for labels, items in (([-100, -100], 0), ([-100, 1], 1)):
        logits.grad = None
        loss, count = token_cross_entropy(logits, torch.tensor(labels))
        loss.backward()
        assert loss.isfinite() and count.item() == items and logits.grad is not None
        assert logits.grad.isfinite().all() and not logits.grad[0].any()


def test_loss_of_equal_logits_is_the_log_of_the_vocabulary() -> None:
    loss, _ = token_cross_entropy(torch.zeros(6, 50), torch.arange(6))
    assert abs(loss.item() - np.log(50)) < 1e-6


def test_loss_does_not_change_when_a_constant_is_added_to_the_logits() -> None:
    logits, labels = torch.randn(9, 11), torch.arange(9)
    moved = token_cross_entropy(logits + 3, labels)[0]
    assert torch.allclose(token_cross_entropy(logits, labels)[0], moved, atol=1e-6)


def test_loss_in_half_precision_is_computed_in_float32() -> None:
    logits, labels = torch.randn(9, 11).bfloat16(), torch.arange(9)
    loss, _ = token_cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    assert loss == token_cross_entropy(logits.float(), labels)[0]


def test_accuracy_counts_labelled_positions_only() -> None:
    logits = torch.eye(4)
    assert accuracy(logits, torch.tensor([0, 1, -100, 0])).item() == torch.tensor(2 / 3).item()
    assert accuracy(logits, torch.full((4,), -100)).item() == 0
