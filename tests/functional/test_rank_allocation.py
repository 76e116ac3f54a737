"""The budget of ranks, the importance of weights and the penalty are those of AdaLoRA's paper."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lmkit.functional.rank_allocation import (
    kept_ranks,
    orthogonality,
    rank_budget,
    smooth_importance,
    triplet_scores,
)


def budgets(total: int, warmup: int, settled: int, initial: int, target: int) -> list[int]:
    ends = total, warmup, settled, initial, target
    return [rank_budget(step, *ends) for step in range(1, total + 1)]


def test_the_budget_is_the_cubic_of_the_paper() -> None:
    found = budgets(200, 20, 50, 144, 96)
    for step, budget in enumerate(found, start=1):
        if 20 <= step < 150:
            exact = 96 + (144 - 96) * ((150 - step) / 130) ** 3
            assert 0 <= exact - budget < 1 + 1e-9
    assert found[:20] == [144] * 20 and found[149:] == [96] * 51
    assert all(earlier >= later for earlier, later in pairwise(found))


@pytest.mark.parametrize(("warmup", "settled"), [(0, 0), (9, 0), (0, 9), (4, 5)])
def test_the_budget_ends_at_the_target_however_short_its_fall(warmup: int, settled: int) -> None:
    found = budgets(10, warmup, settled, 12, 4)
    assert found[-1] == 4 and max(found) <= 12 and min(found) >= 4
    assert found[:warmup] == [12] * warmup


def test_a_budget_without_a_fall_is_constant() -> None:
    assert budgets(10, 2, 3, 8, 8) == [8] * 10


def test_moving_averages_are_sums_over_all_steps() -> None:
    rng = np.random.default_rng(0)
    seen = rng.random((6, 5))
    mean, spread = (torch.zeros(5, dtype=torch.float64) for _ in range(2))
    for importance in seen:
        smooth_importance(mean, spread, torch.from_numpy(importance.copy()), 0.7, 0.9)
    # Written out: each step weighs 1 - beta, and beta for each step since.
    means = [sum(0.3 * 0.7 ** (t - s) * seen[s] for s in range(t + 1)) for t in range(len(seen))]
    expected = sum(0.1 * 0.9 ** (5 - t) * np.abs(seen[t] - means[t]) for t in range(6))
    assert np.allclose(mean, means[-1], atol=1e-12)
    assert np.allclose(spread, expected, atol=1e-12)


def test_without_memory_the_average_is_the_last_step_and_certain() -> None:
    mean, spread = torch.rand(4), torch.rand(4)
    smooth_importance(mean, spread, last := torch.rand(4), 0.0, 0.0)
    assert torch.equal(mean, last) and torch.equal(spread, torch.zeros(4))


def test_a_rank_scores_its_value_and_the_means_of_its_vectors() -> None:
    rng = np.random.default_rng(1)
    left, values, right = rng.random((7, 3)), rng.random((3, 1)), rng.random((3, 5))
    scores = triplet_scores(*map(torch.from_numpy, (left, values, right)))
    for i in range(3):
        expected = values[i, 0] + left[:, i].sum() / 7 + right[i].sum() / 5
        assert scores[i].item() == pytest.approx(expected, abs=1e-12)


def test_the_budget_goes_to_the_highest_scores_of_all_matrices() -> None:
    scores = [torch.tensor(row) for row in ([5.0, 1.0, 3.0], [2.0, 9.0], [0.5])]
    ranked = sorted((s for row in scores for s in row.tolist()), reverse=True)
    for budget in range(7):
        kept = kept_ranks(scores, budget)
        assert [len(each) for each in kept] == [3, 2, 1]
        chosen = [s for row, mask in zip(scores, kept, strict=True) for s in row[mask].tolist()]
        assert sorted(chosen, reverse=True) == ranked[:budget]
    assert all(mask.all() for mask in kept_ranks(scores, 99))


def test_ties_are_broken_by_order_so_that_the_budget_is_met() -> None:
    kept = kept_ranks([torch.zeros(3), torch.zeros(3)], 4)
    assert [mask.tolist() for mask in kept] == [[True] * 3, [True, False, False]]


def test_choosing_ranks_knows_no_scale() -> None:
    scores = list(torch.rand(4, 6, generator=torch.Generator().manual_seed(2)))
    scaled = [1e-6 * each for each in scores]
    for one, other in zip(kept_ranks(scores, 11), kept_ranks(scaled, 11), strict=True):
        assert torch.equal(one, other)


def test_the_penalty_is_the_mean_distance_of_the_gram_matrices() -> None:
    rng = np.random.default_rng(3)
    lefts = [rng.standard_normal((6, 3)), rng.standard_normal((4, 2))]
    rights = [rng.standard_normal((3, 5)), rng.standard_normal((2, 8))]
    gaps = []
    for left, right in zip(lefts, rights, strict=True):
        for gram in (left.T @ left, right @ right.T):
            gaps.append(math.sqrt(((gram - np.eye(len(gram))) ** 2).sum()))
    found = orthogonality([*map(torch.from_numpy, lefts)], [*map(torch.from_numpy, rights)])
    assert found.item() == pytest.approx(sum(gaps) / 4, rel=1e-12)


def test_orthogonal_factors_cost_nothing_and_stay_where_they_are() -> None:
    left = torch.eye(6)[:, :3].requires_grad_()
    right = torch.eye(5)[:3].requires_grad_()
    gap = orthogonality([left], [right])
    gap.backward()
    assert gap.item() == 0.0
    assert left.grad is not None and right.grad is not None
    assert torch.equal(left.grad, torch.zeros(6, 3)) and torch.equal(right.grad, torch.zeros(3, 5))


def test_the_penalty_does_not_see_a_rotation() -> None:
    left, right = torch.randn(6, 3, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    assert torch.allclose(orthogonality([turn @ left], [right]), orthogonality([left], [right]))
