"""Masks are exact to one weight, and scores and schedules are those of the papers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from lmkit.functional.pruning import (
    SCHEDULES,
    SCOPES,
    last_update,
    lowest,
    lowest_in_groups,
    move_scores,
    next_update,
    parse_pattern,
    planned_sparsity,
    prune,
    random_scores,
    share_of_zeros,
    wanda_scores,
)


def matrices(*shapes: tuple[int, int], seed: int = 0, ties: bool = False) -> list[Tensor]:
    draw = np.random.default_rng(seed)
    made = [draw.integers(0, 4, s) if ties else draw.standard_normal(s) for s in shapes]
    return [torch.from_numpy(np.abs(each).astype(np.float64)) for each in made]


def test_the_cubic_schedule_has_the_six_values_of_its_formula() -> None:
    found = [planned_sparsity(t, 100, 1100, 0.9) for t in (100, 300, 500, 700, 900, 1100)]
    assert found == pytest.approx([0.0, 0.4392, 0.7056, 0.8424, 0.8928, 0.9], abs=1e-12)
    assert [round(each, 3) for each in found] == [0.0, 0.439, 0.706, 0.842, 0.893, 0.9]


def test_the_linear_schedule_is_a_line_and_one_shot_a_jump() -> None:
    line = [planned_sparsity(t, 2, 6, 0.8, "linear", 0.4) for t in range(9)]
    assert line == pytest.approx([0.4, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8], abs=1e-12)
    jump = [planned_sparsity(t, 2, 6, 0.8, "one_shot", 0.4) for t in range(4)]
    assert jump == [0.4, 0.4, 0.8, 0.8]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("initial", [0.0, 0.3, 0.7])
def test_a_schedule_rises_from_the_initial_share_to_the_target(
    schedule: str, initial: float
) -> None:
    found = [planned_sparsity(t, 3, 20, 0.7, schedule, initial) for t in range(30)]
    assert all(earlier <= later for earlier, later in pairwise(found))
    assert found[:3] == [initial] * 3 and found[20:] == [0.7] * 10
    assert planned_sparsity(5, 5, 5, 0.7, schedule) == 0.7


def test_masks_are_chosen_at_start_and_end_and_every_interval_between() -> None:
    for start, end, interval in ((0, 10, 3), (4, 5, 9), (2, 12, 1), (3, 9, 6), (7, 7, 2)):
        due = sorted({*range(start, end, interval), end})
        for step in range(15):
            table = start, end, interval
            assert last_update(step, *table) == max((d for d in due if d <= step), default=None)
            assert next_update(step, *table) == min((d for d in due if d > step), default=None)


@pytest.mark.parametrize("count", [0, 1, 5, 11, 12])
@pytest.mark.parametrize("ties", [False, True])
def test_the_lowest_are_those_of_a_stable_sort(count: int, ties: bool) -> None:
    (scores,) = matrices((7, 12), ties=ties)
    expected = np.zeros((7, 12), bool)
    for row, order in enumerate(np.argsort(scores.numpy(), axis=1, kind="stable")):
        expected[row, order[:count]] = True
    assert np.array_equal(lowest(scores, count).numpy(), expected)


def test_of_equal_scores_the_first_go_even_if_all_are_equal() -> None:
    assert lowest(torch.zeros(5), 3).tolist() == [True, True, True, False, False]
    assert lowest(torch.tensor([-torch.inf, 0.0, -torch.inf]), 2).tolist() == [True, False, True]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.9, 0.97, 0.999])
@pytest.mark.parametrize("ties", [False, True])
def test_the_sparsity_is_exact_to_one_weight_of_each_scope(
    scope: str, sparsity: float, ties: bool
) -> None:
    scores = matrices((5, 7), (3, 11), (1, 2), ties=ties)
    pruned = prune(scores, sparsity, scope)
    parts = {
        "row": [row for mask in pruned for row in mask],
        "local": [mask.flatten() for mask in pruned],
        "global": [torch.cat([mask.flatten() for mask in pruned])],
    }[scope]
    for part in parts:
        assert abs(int(part.sum()) - sparsity * len(part)) <= 0.5 + 1e-9
    for mask, score in zip(pruned, scores, strict=True):
        assert mask.shape == score.shape and mask.dtype == torch.bool


@pytest.mark.parametrize("sparsity", [0.25, 0.6, 0.95])
def test_local_and_global_masks_are_those_of_torch(sparsity: float) -> None:
    torch.manual_seed(3)
    layers = [nn.Linear(9, 8), nn.Linear(8, 4), nn.Linear(31, 3)]
    with torch.no_grad():
        layers[1].weight.mul_(5.0)
    scores = [layer.weight.detach().abs() for layer in layers]
    found = {scope: prune(scores, sparsity, scope) for scope in ("local", "global")}
    for layer, mine in zip(layers, found["local"], strict=True):
        method, whole = torch_prune.L1Unstructured(sparsity), torch.ones_like(layer.weight)
        assert torch.equal(~mine, method.compute_mask(layer.weight, whole).bool())
    torch_prune.global_unstructured(
        [(layer, "weight") for layer in layers], torch_prune.L1Unstructured, amount=sparsity
    )
    for layer, mine in zip(layers, found["global"], strict=True):
        assert torch.equal(~mine, layer.weight_mask.bool())
    # The matrix of large weights keeps more of them where all are compared.
    assert int(found["global"][1].sum()) < int(found["local"][1].sum())


def test_a_row_keeps_its_best_and_scales_of_rows_make_no_difference() -> None:
    (scores,) = matrices((4, 10))
    scaled = scores * torch.tensor([[1.0], [1e-6], [1e6], [3.0]], dtype=torch.float64)
    assert torch.equal(prune([scores], 0.7, "row")[0], prune([scaled], 0.7, "row")[0])
    assert not torch.equal(prune([scores], 0.7)[0], prune([scaled], 0.7)[0])


def best_of_groups(scores: Tensor, kept: int, of: int) -> np.ndarray:
    """Mark what does not stay, group by group."""
    pruned = np.ones(scores.shape, bool)
    for i in range(scores.shape[0]):
        for begin in range(0, scores.shape[1], of):
            group = scores[i, begin : begin + of].tolist()
            # Of equal ones the later stay.
            order = sorted(range(of), key=lambda j: (group[j], j))
            for j in order[of - kept :]:
                pruned[i, begin + j] = False
    return pruned


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (3, 4), (4, 8), (1, 3)])
@pytest.mark.parametrize("ties", [False, True])
def test_each_group_keeps_just_its_best(kept: int, of: int, ties: bool) -> None:
    (scores,) = matrices((5, 24), ties=ties)
    expected = best_of_groups(scores, kept, of)
    assert np.array_equal(lowest_in_groups(scores, kept, of).numpy(), expected)
    for scope in SCOPES:
        (pruned,) = prune([scores], 1 - kept / of, scope, (kept, of))
        assert np.array_equal(pruned.numpy(), expected)
        assert (pruned.view(5, -1, of).sum(-1) == of - kept).all()


@pytest.mark.parametrize("scope", SCOPES)
def test_on_the_way_to_a_pattern_only_what_it_leaves_out_is_pruned(scope: str) -> None:
    scores = matrices((6, 16), (4, 8))
    last = prune(scores, 0.5, scope, (2, 4))
    for sparsity in (0.1, 0.25, 0.4):
        now = prune(scores, sparsity, scope, (2, 4))
        assert all(not (mask & ~final).any() for mask, final in zip(now, last, strict=True))
        share = sum(int(m.sum()) for m in now) / sum(m.numel() for m in now)
        # A row of 8 has the choice of 1/8 at the least.
        assert share == pytest.approx(sparsity, abs=1 / 16)


def test_random_masks_are_nested_and_depend_on_seed_and_name_alone() -> None:
    scores = random_scores((50, 80), 3, "layer.0.query.weight")
    before = torch.zeros(50, 80, dtype=torch.bool)
    for sparsity in (0.1, 0.4, 0.8):
        (now,) = prune([scores], sparsity)
        assert not (before & ~now).any()
        before = now
    assert torch.equal(scores, random_scores((50, 80), 3, "layer.0.query.weight"))
    for other in (
        random_scores((50, 80), 4, "layer.0.query.weight"),
        random_scores((50, 80), 3, "layer.1.query.weight"),
    ):
        # Two independent halves have a quarter in common.
        both = prune([scores], 0.5)[0] & prune([other], 0.5)[0]
        assert float(both.double().mean()) == pytest.approx(0.25, abs=0.03)
    columns = prune([scores], 0.5)[0].double().mean(0)
    assert float((columns - 0.5).abs().max()) < 0.35


def test_wanda_is_the_double_loop_of_its_formula() -> None:
    draw = np.random.default_rng(2)
    weight, inputs = draw.standard_normal((6, 10)), draw.standard_normal((40, 10))
    norms = torch.from_numpy(np.sqrt((inputs**2).sum(0)))
    scores = wanda_scores(torch.from_numpy(weight), norms)
    (pruned,) = prune([scores], 0.5, "row")
    for i in range(6):
        by_hand = [abs(weight[i, j]) * math.sqrt(sum(x[j] ** 2 for x in inputs)) for j in range(10)]
        assert scores[i].tolist() == pytest.approx(by_hand, rel=1e-12)
        worst = sorted(range(10), key=lambda j: by_hand[j])[:5]
        assert sorted(worst) == pruned[i].nonzero().flatten().tolist()


def test_wanda_with_equal_inputs_is_magnitude_within_rows() -> None:
    (weight,) = matrices((5, 9))
    alike = wanda_scores(-weight, torch.full((9,), 3.0, dtype=torch.float64))
    assert torch.equal(prune([alike], 0.4, "row")[0], prune([weight], 0.4, "row")[0])


class _TopShare(torch.autograd.Function):
    """The mask of the best scores, differentiated as if it were the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, pruned: int) -> Tensor:
        order = scores.flatten().argsort(stable=True)
        mask = torch.ones_like(scores).flatten()
        mask[order[:pruned]] = 0.0
        return mask.view_as(scores)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        return outputs[0], None


@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_a_step_of_the_scores_is_that_of_the_straight_through_estimator(penalty: float) -> None:
    draw = torch.Generator().manual_seed(5)
    weight, scores, inputs = (
        torch.randn(*shape, dtype=torch.float64, generator=draw)
        for shape in ((4, 6), (4, 6), (9, 6))
    )
    learned = scores.clone().requires_grad_()
    masked = weight * _TopShare.apply(learned, 10)
    masked.retain_grad()
    loss = (inputs @ masked.T).tanh().square().sum()
    (loss + penalty * learned.sigmoid().sum()).backward()
    expected = torch.optim.SGD([learned], lr=0.3)
    expected.step()
    assert masked.grad is not None
    move_scores(scores, weight, masked.grad, 0.3, penalty)
    assert torch.allclose(scores, learned.detach(), atol=1e-14)


def test_the_rate_of_movement_is_a_matter_of_scale() -> None:
    (weight,), draw = matrices((5, 8)), torch.Generator().manual_seed(1)
    small, large = torch.zeros(5, 8, dtype=torch.float64), torch.zeros(5, 8, dtype=torch.float64)
    for _ in range(4):
        gradient = torch.randn(5, 8, dtype=torch.float64, generator=draw)
        move_scores(small, weight, gradient, 1e-3)
        move_scores(large, weight, gradient, 10.0)
    assert torch.allclose(small * 1e4, large, rtol=1e-12)
    assert torch.equal(prune([small], 0.6)[0], prune([large], 0.6)[0])


def test_movement_away_from_zero_is_kept_and_towards_it_is_pruned() -> None:
    weight = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    scores = torch.zeros(1, 4)
    # Descent adds the negative gradient: the first two move away from zero.
    move_scores(scores, weight, torch.tensor([[-1.0, 1.0, 1.0, -1.0]]), 1.0)
    assert prune([scores], 0.5)[0].tolist() == [[False, False, True, True]]


def test_zeros_of_either_sign_are_counted() -> None:
    assert share_of_zeros([torch.tensor([0.0, -0.0, 1e-30, 2.0])]) == 0.5
    assert share_of_zeros([]) == 0.0


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (4, 8), (1, 59)])
def test_a_pattern_without_quotes_is_what_yaml_makes_of_it(kept: int, of: int) -> None:
    assert parse_pattern(f"{kept}:{of}") == (kept, of)
    assert parse_pattern(yaml.safe_load(f"{kept}:{of}")) == (kept, of)


@pytest.mark.parametrize(
    "pattern",
    ["4:2", "4:4", "0:4", "2-4", "two:four", "", "2:4:8", " 2:4", 2, 242, -124, 2.4, True],
)
def test_what_is_no_pattern_is_refused(pattern: Any) -> None:
    with pytest.raises(ValueError, match="pattern must be 'N:M' with 0 < N < M"):
        parse_pattern(pattern)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="scope must be one of row, local, global, got 'layer'"):
        prune([torch.ones(2, 2)], 0.5, "layer")
    with pytest.raises(ValueError, match="schedule must be one of one_shot, linear, cubic"):
        planned_sparsity(0, 0, 1, 0.5, "square")
