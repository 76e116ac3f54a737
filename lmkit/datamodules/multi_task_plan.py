"""Batches of several tasks: which comes when, and how it is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..types import Batch
from .batch_plan import Plan
from .loader import Collate
from .task_sampling import TaskSchedule

__all__ = ["MultiTaskCollate", "MultiTaskPlan", "OneTaskCollate"]

# What stands before the rows of a task: its number, its epoch, and how many rows there are.
_HEADER = 3


class MultiTaskPlan:
    r"""Which rows of which task are in which batch of this rank.

    Each task goes through its own epochs, whichever batches its turns fall on: its turn number $n$
    is batch $n \bmod L$ of its epoch $\lfloor n / L \rfloor$. How many turns a task has had is
    counted from the schedule alone, so that any batch can be made without those before it.

    Args:
        plans: of the tasks.
        schedule: of which task a batch is; `None` for batches of all tasks.
        batches: in an epoch.
        used: how many of them are used, where not all are (`limit_train_batches`).

    Example:
        >>> from lmkit.datamodules.batch_plan import BatchPlan
        >>> plan = MultiTaskPlan([BatchPlan(4, 2), BatchPlan(1, 1)], None, batches=2)
        >>> plan.batch(0, 1).tolist()  # task 0, its epoch 0, 2 rows; task 1, its epoch 1, 1 row
        [0, 0, 2, 2, 3, 1, 1, 1, 0]
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        schedule: TaskSchedule | None,
        batches: int,
        used: int | None = None,
    ) -> None:
        self.plans, self.schedule, self.batches = list(plans), schedule, batches
        self.used = batches if used is None else min(used, batches)
        self._known: dict[str, Any] = {}
        #: How many turns each task has had before an epoch; the last one that was counted.
        self._before = (0, np.zeros(len(self.plans), np.int64))

    @property
    def global_batch(self) -> int:
        """Size of a batch of each task over all ranks, added up."""
        return sum(plan.global_batch for plan in self.plans)

    def __len__(self) -> int:
        return self.batches

    def turns(self, epoch: int, position: int) -> list[tuple[int, int]]:
        """Return each task of a batch, and which of its turns that is."""
        if self.schedule is None:
            return [(task, epoch * self.used + position) for task in range(len(self.plans))]
        if self._known.get("epoch") != epoch:
            tasks, before = self.schedule.tasks(epoch), self._counted(epoch)
            turns = np.empty(len(tasks), np.int64)
            for task, first in enumerate(before):
                mine = tasks == task
                turns[mine] = first + np.arange(mine.sum())
            self._known.update(epoch=epoch, tasks=tasks, turns=turns)
        return [(int(self._known["tasks"][position]), int(self._known["turns"][position]))]

    def batch(self, epoch: int, position: int) -> Tensor:
        """Return the rows of each task in a batch, behind its number, its epoch and their number.

        Returns:
            int64 `[n]`, with -1 for a filler row.
        """
        parts = []
        for task, turn in self.turns(epoch, position):
            own_epoch, place = divmod(turn, len(self.plans[task]))
            rows = self.plans[task].batch(own_epoch, place)
            parts += [torch.tensor([task, own_epoch, len(rows)]), rows]
        return torch.cat(parts)

    def turns_before(self, task: int, epoch: int) -> int:
        """Return how many turns a task has had before an epoch."""
        return epoch * self.used if self.schedule is None else int(self._counted(epoch)[task])

    def _counted(self, epoch: int) -> NDArray[np.int64]:
        assert self.schedule is not None
        done, counts = self._before
        if done > epoch:
            done, counts = 0, np.zeros(len(self.plans), np.int64)
        for earlier in range(done, epoch):
            used = self.schedule.tasks(earlier)[: self.used]
            counts = counts + np.bincount(used, minlength=len(self.plans))
        self._before = (epoch, counts)
        return counts


class OneTaskCollate:
    """Makes the batches of one task, and writes its number into them.

    Args:
        collate: the task's own.
        number: of the task; stands in each batch as `task`, int64 `[B]`.
    """

    def __init__(self, collate: Collate, number: int) -> None:
        self.collate, self.number = collate, number

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch."""
        batch = self.collate(epoch, rows)
        return {**batch, "task": torch.full((len(batch["input_ids"]),), self.number)}


class MultiTaskCollate:
    """Makes batches of what a `MultiTaskPlan` says.

    A batch of one task is that task's, with its number as `task`; one of several has the entries of
    each under `<task>/<entry>`.

    Args:
        collates: the tasks' own, by name.
    """

    def __init__(self, collates: dict[str, Collate]) -> None:
        self.names = list(collates)
        self.parts = [OneTaskCollate(each, number) for number, each in enumerate(collates.values())]

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch; the epoch is that of the run, and each task has its own."""
        made = {self.names[n]: self.parts[n](own, part) for n, own, part in _parts(rows)}
        if len(made) == 1:
            return next(iter(made.values()))
        return {
            f"{name}/{entry}": tensor
            for name, batch in made.items()
            for entry, tensor in batch.items()
        }


def _parts(rows: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield number, epoch and rows of each task."""
    at = 0
    while at < len(rows):
        number, epoch, count = rows[at : at + _HEADER].tolist()
        at += _HEADER
        yield number, epoch, rows[at : at + count]
        at += count
