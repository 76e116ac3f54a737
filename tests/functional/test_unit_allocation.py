"""Units are kept where they are worth the most, within the budget, and never below the floor."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from lmkit.functional.unit_allocation import UnitGroup, allocate, best, levels, nearest_multiple


def groups(
    counts: list[int], unit: list[float], seed: int = 0, multiple_of: int = 1, floor: int = 1
) -> list[UnitGroup]:
    draw = np.random.default_rng(seed)
    return [
        UnitGroup(
            f"kind{cost}",
            torch.from_numpy(draw.random(count)),
            cost * torch.arange(count + 1.0),
            multiple_of,
            floor,
        )
        for count, cost in zip(counts, unit, strict=True)
    ]


def value(group: UnitGroup, kept: int) -> float:
    return float(group.scores.sort(descending=True).values[:kept].sum())


def cost(known: list[UnitGroup], kept: list[int]) -> float:
    return sum(float(group.costs[count]) for group, count in zip(known, kept, strict=True))


def by_force(known: list[UnitGroup], budget: float) -> float:
    """The most that any choice is worth."""
    ranges = [levels(len(g.scores), g.multiple_of, g.floor) for g in known]
    return max(
        sum(value(group, count) for group, count in zip(known, kept, strict=True))
        for kept in product(*ranges)
        if cost(known, list(kept)) <= budget + 1e-9
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("multiple_of", [1, 2])
def test_where_units_cost_the_same_it_is_the_best_choice_there_is(
    seed: int, multiple_of: int
) -> None:
    known = groups([6, 4, 6], [1.0, 1.0, 1.0], seed, multiple_of)
    for budget in range(3 * multiple_of, 17, multiple_of):
        kept = allocate(known, budget)
        assert cost(known, kept) == budget
        found = sum(value(g, n) for g, n in zip(known, kept, strict=True))
        assert found == pytest.approx(by_force(known, budget), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_where_they_differ_little_is_lost_and_the_budget_is_kept(seed: int) -> None:
    known = groups([4, 8, 4, 8], [3.0, 1.0, 3.0, 1.0], seed)
    for budget in (9.0, 15.0, 22.0, 31.0):
        kept = allocate(known, budget)
        assert cost(known, kept) <= budget
        found = sum(value(g, n) for g, n in zip(known, kept, strict=True))
        assert found >= 0.9 * by_force(known, budget)


def test_all_the_budget_keeps_all_and_the_least_keeps_the_floors() -> None:
    known = groups([4, 30], [3.0, 1.0], multiple_of=8)
    assert allocate(known, 1e9) == [4, 30]
    known = [g._replace(floor=f, multiple_of=m) for g, f, m in zip(known, (1, 8), (1, 8))]  # noqa: B905
    assert allocate(known, 11.0) == [1, 8]
    with pytest.raises(ValueError, match=r"\(10.9\) is less than the least that can be \(11\)"):
        allocate(known, 10.9)


def test_more_budget_never_keeps_fewer_of_one_kind() -> None:
    known = groups([12, 12, 12], [1.0, 1.0, 1.0], seed=4)
    before = [0, 0, 0]
    for budget in range(3, 37):
        kept = allocate(known, budget)
        assert all(now >= then for now, then in zip(kept, before, strict=True))
        before = kept


def test_local_keeps_the_same_number_of_a_kind_in_each_layer() -> None:
    known = groups([4, 8, 4, 8], [3.0, 1.0, 3.0, 1.0], seed=1)
    for budget in (12.0, 20.0, 33.0):
        kept = allocate(known, budget, local=True)
        assert kept[0] == kept[2] and kept[1] == kept[3] and cost(known, kept) <= budget
    with pytest.raises(ValueError, match=r"different numbers of ffn \(\[3, 4\]\)"):
        odd = [UnitGroup("ffn", torch.ones(n), torch.arange(n + 1.0)) for n in (3, 4)]
        allocate(odd, 4, local=True)


def test_the_dear_ones_go_first_if_they_are_worth_no_more() -> None:
    count = torch.arange(5.0)
    dear = UnitGroup("heads", torch.ones(4), 10 * count)
    cheap = UnitGroup("ffn", torch.ones(4), count)
    assert allocate([dear, cheap], 14) == [1, 4]
    # Of ten times the worth they are alike, and go by their part of the hull.
    worthy = dear._replace(scores=torch.full([4], 11.0))
    assert allocate([worthy, cheap], 41) == [4, 1]


def test_costs_that_rise_in_steps_are_climbed_to_their_ends() -> None:
    # The second and third unit cost nothing more than the first.
    stepped = UnitGroup("a", torch.tensor([5.0, 1.0, 1.0, 4.0]), torch.tensor([0.0, 2, 2, 2, 9]))
    even = UnitGroup("b", torch.tensor([2.0, 1.0]), torch.tensor([0.0, 2.0, 4.0]))
    assert allocate([stepped, even], 4.0) == [3, 1]
    assert allocate([stepped, even], 6.0) == [3, 2]
    assert allocate([stepped, even], 13.0) == [4, 2]


def test_a_whole_budget_counts_though_its_sum_is_rounded() -> None:
    tenth = UnitGroup("a", torch.ones(10), 0.1 * torch.arange(11).double())
    assert allocate([tenth], 0.3) == [3] and allocate([tenth], 0.7) == [7]


def test_levels_are_multiples_and_all() -> None:
    assert levels(32, 8, 8) == [8, 16, 24, 32]
    assert levels(12, 8, 8) == [8, 12] and levels(5, 8, 8) == [5]
    assert levels(3) == [1, 2, 3] and levels(1) == [1]


def test_the_best_are_the_highest_and_as_many() -> None:
    scores = torch.tensor([2.0, 5.0, 2.0, 1.0])
    assert best(scores, 2).tolist() == [False, True, True, False]
    assert best(scores, 0).sum() == 0 and best(scores, 4).all()
    with pytest.raises(ValueError, match="not finite"):
        best(torch.tensor([float("nan"), 1.0]), 1)


def test_rounding_is_to_the_nearest_multiple() -> None:
    assert [nearest_multiple(v, 8, 8) for v in (1, 11.9, 12, 20.1)] == [8, 8, 16, 24]
