"""Sums of Kronecker products are what the dense definition says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmkit.functional.kronecker import kronecker_size, kronecker_sum, kronecker_weight


def draw(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 2, 3, 4, 5), (4, 4, 4, 6, 2), (3, 1, 2, 1, 7)])
def test_a_sum_is_the_sum_of_dense_products(shape: tuple[int, ...]) -> None:
    n, a, b, p, q = shape
    left, right = draw(n, a, b), draw(n, p, q)
    dense = sum(np.kron(left[i].numpy(), right[i].numpy()) for i in range(n))
    assert torch.allclose(kronecker_sum(left, right), torch.from_numpy(dense), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_weight_is_what_its_factors_say_entry_by_entry(rank: int) -> None:
    n, rows, columns = 3, 2, 4
    rule, left, right = draw(n, n, n), draw(n, rows, rank), draw(n, rank, columns)
    weight = kronecker_weight(rule, left, right)
    expected = torch.zeros(n * rows, n * columns, dtype=torch.float64)
    for row in range(n * rows):
        for column in range(n * columns):
            for i in range(n):
                outer = rule[i, row // rows, column // columns]
                inner = sum(
                    left[i, row % rows, k] * right[i, k, column % columns] for k in range(rank)
                )
                expected[row, column] += outer * inner
    assert torch.allclose(weight, expected, atol=1e-12)


def test_one_product_with_a_rule_of_one_is_the_second_factor() -> None:
    rows, columns = draw(1, 5, 2), draw(1, 2, 7)
    weight = kronecker_weight(torch.ones(1, 1, 1, dtype=torch.float64), rows, columns)
    assert torch.equal(weight, rows[0] @ columns[0])


def test_the_order_of_the_products_does_not_matter() -> None:
    left, right = draw(4, 3, 3), draw(4, 2, 2)
    assert torch.allclose(kronecker_sum(left, right), kronecker_sum(left.flip(0), right.flip(0)))


def test_gradients_are_those_of_finite_differences() -> None:
    factors = [draw(2, 2, 2), draw(2, 3, 1), draw(2, 1, 2)]
    assert torch.autograd.gradcheck(kronecker_weight, [f.requires_grad_() for f in factors])


def test_the_size_counts_the_factors() -> None:
    n, rank, inside, outside = 4, 3, 24, 8
    rows, columns = draw(n, outside // n, rank), draw(n, rank, inside // n)
    assert kronecker_size(inside, outside, rank) == rows.numel() + columns.numel()


def test_shapes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"as many matrices.*\[2, 2, 2\] and \[3, 2, 2\]"):
        kronecker_sum(draw(2, 2, 2), draw(3, 2, 2))
    with pytest.raises(ValueError, match=r"one rank.*\[2, 2, 1\] and \[2, 2, 2\]"):
        kronecker_weight(draw(2, 2, 2), draw(2, 2, 1), draw(2, 2, 2))
