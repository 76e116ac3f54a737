"""The shortest vector of a hull: its closed form, its conditions, and ill-conditioned hulls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmkit.functional.min_norm import min_norm_weights


def corners(count: int, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, length, dtype=torch.float64, generator=generator) + 0.5


def assert_shortest(jacobian: Tensor, weights: Tensor) -> None:
    """Check the conditions of the optimum, on the vectors themselves."""
    assert (weights >= 0).all() and weights.sum().item() == pytest.approx(1.0, abs=1e-12)
    vector = weights @ jacobian
    slack = jacobian @ vector - vector @ vector
    scale = jacobian.square().sum(1).max()
    assert slack.min() >= -1e-10 * scale  # no corner lies nearer
    assert (weights * slack).abs().max() <= 1e-10 * scale  # and those in use lie as near


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("count", "length"), [(1, 3), (2, 3), (3, 9), (6, 40), (9, 4), (16, 16)])
def test_no_corner_lies_nearer(count: int, length: int, seed: int) -> None:
    jacobian = corners(count, length, seed)
    assert_shortest(jacobian, min_norm_weights(jacobian @ jacobian.T))


@pytest.mark.parametrize("seed", range(8))
def test_two_corners_have_the_closed_form(seed: int) -> None:
    one, two = corners(2, 3, seed)
    share = ((two - one) @ two / (one - two).square().sum()).clamp(0.0, 1.0)
    jacobian = torch.stack([one, two])
    found = min_norm_weights(jacobian @ jacobian.T)
    assert torch.allclose(found, torch.stack([share, 1 - share]), atol=1e-12)


@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e3, 1e6])
def test_lengths_may_differ_by_far(spread: float) -> None:
    jacobian = corners(4, 10, 3) * torch.tensor([1.0, spread, 1.0, spread]).double().unsqueeze(1)
    assert_shortest(jacobian, min_norm_weights(jacobian @ jacobian.T))


def test_corners_may_be_equal_and_lie_in_one_plane() -> None:
    base = corners(2, 5, 1)
    jacobian = torch.cat([base, base, base.mean(0, keepdim=True), 2 * base])
    assert_shortest(jacobian, min_norm_weights(jacobian @ jacobian.T))
    near = torch.cat([base, base + 1e-9 * corners(2, 5, 2)])
    assert_shortest(near, min_norm_weights(near @ near.T))


def test_a_hull_around_the_origin_has_the_vector_zero() -> None:
    jacobian = torch.cat([corners(2, 3, 0), -corners(2, 3, 0).sum(0, keepdim=True)])
    weights = min_norm_weights(jacobian @ jacobian.T)
    assert (weights @ jacobian).norm() < 1e-12
    assert min_norm_weights(torch.zeros(3, 3).double()).sum() == 1.0
