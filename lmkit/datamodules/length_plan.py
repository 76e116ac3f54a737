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
    ) -> None:
        check_positive(examples=len(lengths), batch_size=batch_size, world_size=world_size)
        self.accumulate = accumulate
        self.lengths, self.batch_size = lengths, batch_size
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.classes = classes
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
        """Return the examples of this rank's batch: int64 `[batch_size]`, -1 for a filler."""
        if self._orders.get("epoch") != epoch:
            self._orders.update(epoch=epoch, order=self._order(epoch))
        step, part = divmod(position, self.accumulate)
        # Dealt in turn, so that every rank and batch has about the same length.
        first, parts = part * self.world_size + self.rank, self.world_size * self.accumulate
        return torch.from_numpy(self._orders["order"][step][first::parts].copy())

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return the examples of all optimizer steps, int64 `[steps, examples]`."""
        count, size = len(self.lengths), self.global_batch * self.accumulate
        order = np.full(self._steps * size, -1)
        if self.seed is None:
            order[:count] = np.argsort(-self.lengths, kind="stable")
            return order.reshape(-1, size)
        seed = mix(self.seed, epoch)
        order[:count] = self._drawn(seed)
        # Fillers count as the shortest, and so fall into one batch.
        keys = np.where(order < 0, -1, self.lengths[order])
        for first in range(0, len(order), _WINDOW * size):
            window = slice(first, first + _WINDOW * size)
            order[window] = order[window][np.argsort(-keys[window], kind="stable")]
        return order.reshape(-1, size)[_shuffled(self._steps, mix(seed, 1))]

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


def _shuffled(count: int, seed: int) -> NDArray[np.int64]:
    order: NDArray[np.int64] = permute(torch.arange(count), count, seed).numpy()
    return order
