"""Agreement is a cosine and a share, whatever the shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmkit.functional.agreement import Agreement, agreement


def test_it_is_the_cosine_and_the_share_of_numpy() -> None:
    first, second = torch.randn(5, 7, 3), torch.randn(5, 7, 3)
    a, b = first.double().numpy().ravel(), second.double().numpy().ravel()
    expected = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    same = float((first.numpy().argmax(-1) == second.numpy().argmax(-1)).mean())
    found = agreement(first, second)
    assert found.cosine == pytest.approx(expected, rel=1e-12) and found.same == same
    assert agreement(first, 3 * first) == Agreement(pytest.approx(1.0), 1.0)
    assert agreement(first, -first).cosine == pytest.approx(-1.0)


def test_excluded_classes_and_zeros() -> None:
    first = torch.tensor([[1.0, -torch.inf, 2.0]])
    assert agreement(first, first) == Agreement(pytest.approx(1.0), 1.0)
    zero = torch.zeros(2, 3)
    assert agreement(zero, zero).cosine == 1.0 and agreement(zero, zero + 1).cosine == 0.0
    assert agreement(torch.ones(4, 1), torch.ones(4, 1)).same == 1.0


def test_in_words() -> None:
    assert str(Agreement(0.99237, 0.984)) == "cosine 0.9924, the same class in 98.4%"


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3, 2\)"):
        agreement(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="two sides of one shape"):
        agreement(torch.zeros(0, 3), torch.zeros(0, 3))
