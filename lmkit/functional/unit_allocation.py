"""How many units each layer keeps: the same everywhere, or where they are worth the most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .pruning import lowest

__all__ = ["ALLOCATIONS", "UnitGroup", "allocate", "best", "levels", "nearest_multiple"]

#: Whether all layers keep as many units, or each as many as it is worth.
ALLOCATIONS = ("local", "global")


class UnitGroup(NamedTuple):
    """The units of one kind in one layer, for `allocate`.

    Attributes:
        kind: groups of the same kind keep the same number under a local allocation.
        scores: importance of each unit, `[count]`, at least 0.
        costs: what 0, 1, ... `count` units cost, `[count + 1]`, never falling: parameters, seconds,
            or their number.
        multiple_of: the number of units that are kept is a multiple of it, or all of them.
        floor: how many are kept at least, in `[1, count]`.
    """

    kind: str
    scores: Tensor
    costs: Tensor
    multiple_of: int = 1
    floor: int = 1


def best(scores: Tensor, count: int) -> Tensor:
    """Mark the highest scores; of equal ones the last.

    Args:
        scores: `[n]`.
        count: how many, in `[0, n]`.

    Returns:
        bool `[n]`.

    Raises:
        ValueError: a score is no number.

    Example:
        >>> best(torch.tensor([1.0, 3.0, 2.0]), 2)
        tensor([False,  True,  True])
    """
    if not bool(scores.isfinite().all()):
        raise ValueError("the importance of a unit is not finite: look at the loss")
    wide = scores.detach().double().cpu()
    return ~lowest(wide, len(wide) - count)


def levels(count: int, multiple_of: int = 1, floor: int = 1) -> list[int]:
    """Return how many units may be kept, in rising order.

    Args:
        count: how many there are.
        multiple_of: each number but the last is a multiple of it.
        floor: each is at least so many, or all that there are.

    Example:
        >>> levels(30, multiple_of=8, floor=9)
        [16, 24, 30]
    """
    least = math.ceil(floor / multiple_of) * multiple_of
    return [*range(least, count, multiple_of), count]


def nearest_multiple(value: float, multiple_of: int, least: int) -> int:
    """Round to the nearest multiple, at least `least`.

    Example:
        >>> nearest_multiple(100.0, 16, 8), nearest_multiple(2.0, 16, 8)
        (96, 8)
    """
    return max(least, int(value / multiple_of + 0.5) * multiple_of)


def allocate(groups: Sequence[UnitGroup], budget: float, local: bool = False) -> list[int]:
    r"""Share a budget out among layers, where it keeps the most importance.

    $\max \sum_g V_g(n_g)$ with $\sum_g C_g(n_g) \le B$, where $V_g(n)$ is the sum of the $n$
    highest scores of a group and $C_g(n)$ what so many cost. Greedy, by importance per cost: each
    group begins with its floor, and goes on along the upper concave hull of $(C_g, V_g)$, the
    steepest part of all first. Where costs are the same for each unit, this is the best there is
    but for the last step that does not fit; what is left then goes to whatever fits.

    Args:
        groups: of all layers and kinds that compete.
        budget: $B$, in the unit of the costs.
        local: whether groups of a kind keep the same number. They must have the same number of
            units, `multiple_of` and `floor`.

    Returns:
        How many units each group keeps.

    Raises:
        ValueError: the budget is below what the floors cost, or, if `local`, groups of a kind
            differ in their number of units.

    Example:
        >>> each = torch.arange(4.0)
        >>> rich = UnitGroup("ffn", torch.tensor([5.0, 4.0, 3.0]), each)
        >>> poor = UnitGroup("ffn", torch.tensor([1.0, 1.0, 1.0]), each)
        >>> allocate([rich, poor], 4), allocate([rich, poor], 4, local=True)
        ([3, 1], [2, 2])
    """
    joined = _by_kind(groups) if local else [[place] for place in range(len(groups))]
    chains = [_Chain([groups[place] for place in places]) for places in joined]
    at = [0] * len(chains)
    room = budget - sum(chain.costs[0] for chain in chains)
    if room < -_slack(budget):
        least = sum(chain.costs[0] for chain in chains)
        raise ValueError(
            f"what is to be left ({budget:g}) is less than the least that can be ({least:g})"
        )
    parts = sorted(
        (
            (-slope, number, stop)
            for number, chain in enumerate(chains)
            for slope, stop in chain.hull()
        ),
        key=lambda part: part[0],
    )
    for _, number, stop in parts:
        room = _climb(chains[number], at, number, stop, room, _slack(budget))
    # A part that did not fit as a whole may have left room for one that is less steep.
    for number, chain in enumerate(chains):
        room = _climb(chain, at, number, len(chain.costs) - 1, room, _slack(budget))
    kept = [0] * len(groups)
    for chain, places, level in zip(chains, joined, at, strict=True):
        for place in places:
            kept[place] = chain.levels[level]
    return kept


class _Chain:
    """What a group, or all groups of a kind together, cost and are worth at each level."""

    def __init__(self, groups: Sequence[UnitGroup]) -> None:
        first = groups[0]
        self.levels = levels(len(first.scores), first.multiple_of, first.floor)
        at = torch.tensor(self.levels)
        self.costs = torch.stack([g.costs.double()[at] for g in groups]).sum(0).tolist()
        sums = []
        for group in groups:
            ranked = group.scores.detach().double().cpu().sort(descending=True).values
            sums.append(torch.cat([ranked.new_zeros(1), ranked.cumsum(0)])[at])
        self.values = torch.stack(sums).sum(0).tolist()

    def hull(self) -> list[tuple[float, int]]:
        """Return slope and last level of each part of the upper concave hull, steepest first."""
        corners = [0]
        for stop in range(1, len(self.levels)):
            # A corner that lies below the line from the one before it is none.
            while len(corners) > 1 and self._slope(*corners[-2:]) <= self._slope(corners[-1], stop):
                corners.pop()
            corners.append(stop)
        return [(self._slope(*pair), pair[1]) for pair in pairwise(corners)]

    def _slope(self, start: int, stop: int) -> float:
        cost = self.costs[stop] - self.costs[start]
        gain = self.values[stop] - self.values[start]
        return gain / cost if cost > 0 else math.inf


def _climb(
    chain: _Chain, at: list[int], number: int, stop: int, room: float, slack: float
) -> float:
    """Take levels of a chain up to one while there is room; return what is left of it."""
    while at[number] < stop:
        cost = chain.costs[at[number] + 1] - chain.costs[at[number]]
        if cost > room + slack:
            break
        at[number] += 1
        room -= cost
    return room


def _by_kind(groups: Sequence[UnitGroup]) -> list[list[int]]:
    kinds: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        kinds.setdefault(group.kind, []).append(place)
    for kind, places in kinds.items():
        counts = {len(groups[place].scores) for place in places}
        if len(counts) > 1:
            raise ValueError(
                f"layers have different numbers of {kind} ({sorted(counts)}), and a local "
                "allocation gives each the same: take allocation='global'"
            )
    return list(kinds.values())


def _slack(budget: float) -> float:
    # Sums of many costs have rounding errors.
    return 1e-9 * max(1.0, abs(budget))
