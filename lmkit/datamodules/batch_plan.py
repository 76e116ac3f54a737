"""Batches planned as a pure function of (seed, epoch, rank, position)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..functional.random import mix, permute

__all__ = ["BatchPlan", "BucketPlan", "Plan", "check_positive", "check_settings"]

# Batches that are shuffled at once: a call for one costs nearly as much.
_BLOCK = 64


def check_positive(**arguments: int | None) -> None:
    """Raise `ValueError` for an argument, by its name, that is there and below 1."""
    for name, value in arguments.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def check_settings(max_length: int, val_fraction: float, num_workers: int = 0) -> None:
    """Raise `ValueError` for a setting of a data module that lies outside its range."""
    if max_length < 8:
        raise ValueError(f"max_length must be at least 8, got {max_length}")
    if not 0.0 <= val_fraction < 1.0:
        raise ValueError(f"val_fraction must lie in [0, 1), got {val_fraction}")
    if num_workers < 0:
        raise ValueError(f"num_workers must be 0 or more, got {num_workers}")


class Plan(Protocol):
    """Which rows are in which batch of this rank; each rank has as many batches."""

    @property
    def global_batch(self) -> int:
        """Size of a batch over all ranks, in the unit of the plan."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same in each."""

    def batch(self, epoch: int, position: int) -> Tensor:
        """Return row numbers, int64 `[B]`, with -1 for a filler row."""


@dataclass(frozen=True)
class BatchPlan:
    """Which rows of a data set are in which batch of which rank.

    The rows of an epoch stand in an order (shuffled by `permute`, or their own), are cut into
    global batches of `batch_size * world_size`, and are dealt to the ranks in turn. Each row comes
    exactly once; what the last global batch lacks is made up by filler rows, -1, so that every
    rank has the same number of batches of the same size.

    Attributes:
        rows: size of the data set, at least 1.
        batch_size: rows per batch and rank.
        rank: of this process, in `[0, world_size)`.
        world_size: number of processes.
        seed: of the order, a new one each epoch; `None` keeps the natural order.

    Example:
        >>> plan = BatchPlan(rows=5, batch_size=2)
        >>> [plan.batch(0, position).tolist() for position in range(len(plan))]
        [[0, 1], [2, 3], [4, -1]]
    """

    rows: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int | None = None
    #: The shuffled rows of the batches around the one asked for last.
    _shuffled: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_positive(rows=self.rows, batch_size=self.batch_size, world_size=self.world_size)

    @property
    def global_batch(self) -> int:
        """Rows per batch over all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        return math.ceil(self.rows / self.global_batch)

    def batch(self, epoch: int, position: int) -> Tensor:
        """Return the rows of this rank's batch number `position`: int64 `[batch_size]`."""
        # In numpy, whose calls on a batch's few numbers take a fraction of torch's.
        place = np.arange(self.rank, self.global_batch, self.world_size)
        if self.seed is None:
            place += position * self.global_batch
            place[place >= self.rows] = -1
            return torch.from_numpy(place)
        block, inside = divmod(position, _BLOCK)
        if self._shuffled.get("key") != (epoch, block):
            first = block * _BLOCK * self.global_batch
            window = torch.arange(first, min(first + _BLOCK * self.global_batch, self.rows))
            shuffled = permute(window, self.rows, mix(self.seed, epoch))
            # A filler at the end, for what the last batch lacks.
            self._shuffled.update(key=(epoch, block), rows=np.append(shuffled.numpy(), -1))
        rows = self._shuffled["rows"]
        place += inside * self.global_batch
        return torch.from_numpy(rows[np.minimum(place, len(rows) - 1)])


@dataclass(frozen=True)
class BucketPlan:
    """Batches of rows of about one length, with as many rows as a budget of tokens allows.

    Rows are sorted by length into classes of one width. A batch has rows of one class, drawn anew
    each epoch, and the batches come in an order that is drawn anew. What a class has left over from
    full batches, its longest rows, joins the next wider one. So each epoch has the same number of
    batches, few different shapes, and hardly any padding.

    Attributes:
        classes: for each class, short rows first, its last row (exclusive) and its width.
        budget: tokens per batch and rank, padding included; a row that is wider has its own batch.
        rank: of this process, in `[0, world_size)`.
        world_size: number of processes.
        seed: of the order, a new one each epoch; `None` keeps the short rows first.

    Example:
        >>> plan = BucketPlan([(5, 8), (7, 16)], budget=32)
        >>> [plan.batch(0, position).tolist() for position in range(len(plan))]
        [[0, 1, 2, 3], [4, 5], [6, -1]]
    """

    classes: Sequence[tuple[int, int]]
    budget: int
    rank: int = 0
    world_size: int = 1
    seed: int | None = None

    @property
    def global_batch(self) -> int:
        """Tokens per batch over all ranks, padding included."""
        return self.budget * self.world_size

    @cached_property
    def _groups(self) -> list[tuple[int, int, int]]:
        """First row, number of rows, and rows per batch and rank, of each group of classes."""
        groups = []
        first = 0
        for place, (end, width) in enumerate(self.classes):
            size = max(1, self.budget // width)
            is_last = place == len(self.classes) - 1
            count = end - first
            if not is_last:
                count -= count % (size * self.world_size)
            if count:
                groups.append((first, count, size))
                first += count
        return groups

    @cached_property
    def _parts(self) -> list[BatchPlan]:
        """The plan of each group."""
        seeds = [None if self.seed is None else mix(self.seed, g) for g in range(len(self._groups))]
        return [
            BatchPlan(count, size, self.rank, self.world_size, seed)
            for (_, count, size), seed in zip(self._groups, seeds, strict=True)
        ]

    @cached_property
    def _ends(self) -> list[int]:
        """Batches up to and with each group."""
        return list(accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def batch(self, epoch: int, position: int) -> Tensor:
        """Return the rows of this rank's batch number `position`: int64 `[B]`, -1 for a filler."""
        if self.seed is not None:
            seed = mix(self.seed, epoch)
            position = int(permute(torch.tensor([position]), len(self), seed))
        group = bisect_right(self._ends, position)
        if group:
            position -= self._ends[group - 1]
        first = self._groups[group][0]
        rows = self._parts[group].batch(epoch, position)
        return torch.where(rows < 0, rows, rows + first)
