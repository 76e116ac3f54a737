"""Inner products in float64, whatever the gradients are, and what they say of the tasks."""

from __future__ import annotations

import pytest
import torch

from lmkit.functional.gramian import cosines, gradient_shares, gramian, scaled_gramian


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inner_products_are_those_of_float64(dtype: torch.dtype) -> None:
    rows = [torch.randn((1 << 18) + 77).to(dtype) for _ in range(3)]  # more than one chunk
    wide = torch.stack(rows).double()
    assert torch.allclose(gramian(rows), wide @ wide.T, rtol=1e-12)


def test_small_gradients_do_not_vanish() -> None:
    assert gramian([torch.full((4,), 1e-30)])[0, 0].item() == pytest.approx(4e-60)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_names_its_task(value: float) -> None:
    rows = [torch.ones(3), torch.tensor([0.0, value, 0.0])]
    with pytest.raises(ValueError, match="task 'ner' is NaN"):
        gramian(rows, ["nli", "ner"])
    with pytest.raises(ValueError, match="task 1 is NaN"):
        gramian(rows)


def test_a_gramian_is_square() -> None:
    with pytest.raises(ValueError, match=r"shape \[T, T\], got \[2, 3\]"):
        scaled_gramian(torch.ones(2, 3))
    assert torch.equal(scaled_gramian(torch.zeros(2, 2)), torch.zeros(2, 2).double())


def test_cosines_are_those_of_the_gradients() -> None:
    rows = torch.randn(4, 9)
    found = cosines(gramian(list(rows)))
    for i in range(4):
        for j in range(4):
            known = torch.cosine_similarity(rows[i].double(), rows[j].double(), dim=0)
            assert found[i, j].item() == pytest.approx(known.item(), abs=1e-12)
    assert torch.equal(cosines(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))[1], torch.zeros(2).double())


def test_shares_are_projections_on_the_update() -> None:
    rows, weights = torch.randn(3, 7).double(), torch.rand(3).double()
    update = weights @ rows
    found = gradient_shares(gramian(list(rows)), weights)
    assert torch.allclose(found, weights * (rows @ update) / update.square().sum())
    assert found.sum().item() == pytest.approx(1.0)
    opposite = gramian([torch.ones(2), -torch.ones(2)])
    assert torch.equal(gradient_shares(opposite, torch.ones(2)), torch.zeros(2).double())
