"""Factors share a range out, and change no product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lmkit.functional.quantization import (
    fake_quantize_input,
    fake_quantize_weight,
    input_parameters,
)
from lmkit.functional.smoothing import smoothing_factors


def drawn() -> tuple[Tensor, Tensor]:
    """Draw inputs with outliers in two channels, and weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 32, generator=generator, dtype=torch.float64)
    x[:, [3, 17]] *= 60
    return x, torch.randn(24, 32, generator=generator, dtype=torch.float64)


def largest(x: Tensor) -> Tensor:
    return x.abs().amax(0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_factors_are_those_of_the_formula_and_the_product_stays(alpha: float) -> None:
    x, weight = drawn()
    factors = smoothing_factors(largest(x), largest(weight), alpha)
    for j in range(32):
        most, heaviest = float(x[:, j].abs().max()), float(weight[:, j].abs().max())
        assert factors[j].item() == pytest.approx(most**alpha / heaviest ** (1 - alpha), rel=1e-12)
    gap = (x / factors) @ (weight * factors).T - x @ weight.T
    assert gap.abs().max() < 1e-12 * (x @ weight.T).abs().max()


def test_in_the_middle_inputs_and_weights_have_the_same_range() -> None:
    x, weight = drawn()
    factors = smoothing_factors(largest(x), largest(weight), 0.5)
    assert torch.allclose(largest(x / factors), largest(weight * factors), rtol=1e-12)
    # At either end one of the two has the same range in all channels.
    ends = [smoothing_factors(largest(x), largest(weight), a) for a in (0.0, 1.0)]
    assert torch.allclose(largest(weight * ends[0]), torch.ones(32, dtype=torch.float64))
    assert torch.allclose(largest(x / ends[1]), torch.ones(32, dtype=torch.float64))


def test_outliers_cost_less_when_they_are_shared_out() -> None:
    x, weight = drawn()

    def error(factors: Tensor) -> float:
        read, held = x / factors, weight * factors
        rounded = fake_quantize_input(read, *input_parameters(read, "per_tensor"))
        return float((rounded @ fake_quantize_weight(held).T - x @ weight.T).norm())

    plain = error(torch.ones(32, dtype=torch.float64))
    assert error(smoothing_factors(largest(x), largest(weight))) < 0.5 * plain


def test_what_is_never_read_or_weighs_nothing_is_left_alone() -> None:
    inputs = torch.tensor([0.0, 4.0, 4.0, float("inf")])
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert smoothing_factors(inputs, weights).tolist() == [1.0, 1.0, 2.0, 1.0]


@pytest.mark.parametrize("alpha", [-0.1, 1.5, True, "0.5", float("nan")])
def test_what_lies_outside_is_refused(alpha: Any) -> None:
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got"):
        smoothing_factors(torch.ones(2), torch.ones(2), alpha)
    with pytest.raises(ValueError, match=r"must have one shape, got \(2,\) and \(3,\)"):
        smoothing_factors(torch.ones(2), torch.ones(3))
