"""Batches of as many examples each, of about one length."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..functional.random import mix, permute
from .batch_plan import check_positive

__all__ = ["LengthPlan"]

# Batches among which the examples are sorted by length: enough that a batch has hardly any
# padding, few enough that its company changes from epoch to epoch.
_WINDOW = 50


class LengthPlan:
    """Which examples are in which batch of which rank, those of one length together.

    In training the examples of an epoch stand in an order drawn from (seed, epoch); among the
    examples of 50 steps they are sorted by length, and the batches are then taken in an order
    that is drawn as well. Each example comes once an epoch (with `classes`, each class as often),
    and every rank has as many batches of `batch_size` examples; what the last one lacks is made up
    by fillers, -1. In evaluation all are sorted by length, the longest first, so that a batch that
    does not fit into memory shows at once.

    Args:
        lengths: int64 `[N]`.
        batch_size: examples per batch and rank.
        rank: of this process, in `[0, world_size)`.
        world_size: number of processes.
        seed: of the order, a new one each epoch; `None` for evaluation.
        classes: int64 `[N]`, the class of each example: each class then comes as often as any
            other, the examples of a small one several times an epoch.
        even: in training, let the batches of a window have as many *tokens* each, and `batch_size`
            examples on average. A mean over the tokens of a batch then weighs each token of the
            epoch alike, which among batches of one length it does not: those of short examples
            have few.
        accumulate: batches of an optimizer step: those of a step are brought together, so that two
            of half the size are one of the whole.

    Raises:
        ValueError: there is no example, or a size is below 1.

    Example:
        >>> plan = LengthPlan(np.array([3, 9, 4, 8, 5]), batch_size=2)
        >>> [plan.batch(0, position).tolist() for position in range(len(plan))]
        [[1, 3], [4, 2], [0, -1]]
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
        classes: NDArray[np.int64] | None = None,
        accumulate: int = 1,
        even: bool = False,
    ) -> None:
        check_positive(examples=len(lengths), batch_size=batch_size, world_size=world_size)
        self.accumulate = accumulate
        self.lengths, self.batch_size = lengths, batch_size
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.classes = classes
        self.even = even and seed is not None
        self._orders: dict[str, Any] = {}

    @property
    def global_batch(self) -> int:
        """Examples per batch over all ranks."""
        return self.batch_size * self.world_size

    @property
    def _steps(self) -> int:
        return math.ceil(len(self.lengths) / (self.global_batch * self.accumulate))

    def __len__(self) -> int:
        return self._steps * self.accumulate

    def batch(self, epoch: int, position: int) -> Tensor:
        """Return the examples of this rank's batch: int64 `[batch_size]`, -1 for a filler.

        With `even` there are as many as it takes, and a filler only where there are none.
        """
        if self._orders.get("epoch") != epoch:
            self._orders.update(epoch=epoch, order=self._order(epoch))
        step, part = divmod(position, self.accumulate)
        # Dealt in turn, so that every rank and batch has about the same length.
        first, parts = part * self.world_size + self.rank, self.world_size * self.accumulate
        rows = self._orders["order"][step][first::parts]
        return torch.from_numpy(rows.copy() if len(rows) else np.array([-1]))

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the examples of each optimizer step."""
        count, size = len(self.lengths), self.global_batch * self.accumulate
        order = np.full(self._steps * size, -1)
        if self.seed is None:
            order[:count] = np.argsort(-self.lengths, kind="stable")
            return list(order.reshape(-1, size))
        seed = mix(self.seed, epoch)
        order[:count] = self._drawn(seed)
        # Fillers count as the shortest, and so fall into one batch.
        keys = np.where(order < 0, -1, self.lengths[order])
        steps: list[NDArray[np.int64]] = []
        for first in range(0, len(order), _WINDOW * size):
            window = slice(first, first + _WINDOW * size)
            rows = order[window][np.argsort(-keys[window], kind="stable")]
            count = len(rows) // size
            if self.even:
                rows = rows[rows >= 0]
                steps += np.split(rows, _even_bounds(self.lengths[rows], count))
            else:
                steps += list(rows.reshape(count, size))
        return [steps[step] for step in _shuffled(self._steps, mix(seed, 1))]

    def _drawn(self, seed: int) -> NDArray[np.int64]:
        count = len(self.lengths)
        if self.classes is None:
            return _shuffled(count, seed)
        members = [np.flatnonzero(self.classes == kind) for kind in np.unique(self.classes)]
        drawn = []
        for number, rows in enumerate(members):
            # As many of each class as of any other, up to one; each row as often as any other.
            share = (count + number) // len(members)
            turns = math.ceil(share / len(rows))
            each = [rows[_shuffled(len(rows), mix(seed, number, turn))] for turn in range(turns)]
            drawn.append(np.concatenate(each)[:share])
        return np.concatenate(drawn)[_shuffled(count, mix(seed, len(members)))]


def _even_bounds(lengths: NDArray[np.int64], parts: int) -> NDArray[np.int64]:
    """Return where to cut rows into parts of about as many tokens, none of them empty."""
    middles = np.cumsum(lengths) - lengths / 2
    shares = middles[-1] + lengths[-1] / 2
    bounds = np.searchsorted(middles, shares * np.arange(1, parts) / parts)
    places = np.arange(1, parts)
    # At least one row for each part before a bound, and behind it.
    return np.clip(
        np.maximum.accumulate(bounds - places) + places, places, len(lengths) - parts + places
    )


def _shuffled(count: int, seed: int) -> NDArray[np.int64]:
    order: NDArray[np.int64] = permute(torch.arange(count), count, seed).numpy()
    return order
