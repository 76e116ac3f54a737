"""Batches planned as a pure function of (seed, epoch, rank, position), and loaders that resume.

`torch.utils.data.DataLoader` draws its order from a generator, counts what it has prefetched, and
is rebuilt by Lightning with another sampler on several devices. Here the plan says which rows a
batch has, the loader only carries it out, and its state is two numbers.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..functional.random import mix, permute
from ..types import Batch

__all__ = ["BatchPlan", "Collate", "PlannedLoader", "ResumableLoader"]

log = logging.getLogger("lmkit")


class Collate(Protocol):
    """Makes a batch of rows: `epoch`, and row numbers int64 `[B]` with -1 for a filler row."""

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch."""


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

    def __post_init__(self) -> None:
        for name in ("rows", "batch_size", "world_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def global_batch(self) -> int:
        """Rows per batch over all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        return math.ceil(self.rows / self.global_batch)

    def batch(self, epoch: int, position: int) -> Tensor:
        """Return the rows of this rank's batch number `position`: int64 `[batch_size]`."""
        place = torch.arange(self.batch_size) * self.world_size + self.rank
        place += position * self.global_batch
        real = place < self.rows
        rows = torch.full_like(place, -1)
        inside = place[real]
        rows[real] = (
            inside if self.seed is None else permute(inside, self.rows, mix(self.seed, epoch))
        )
        return rows


class PlannedLoader:
    """Carries out a plan from its first batch to its last, always the same epoch (evaluation).

    It is sized, and not a `torch.utils.data.DataLoader`, so that Lightning leaves it as it is. It
    draws nothing from torch's global generator, and starts its workers at the first batch.

    Args:
        plan: which rows are in which batch.
        collate: makes the batch; it travels to the workers, and has to be picklable.
        num_workers: processes that make batches ahead; 0 makes them in this process.
    """

    def __init__(self, plan: BatchPlan, collate: Collate, num_workers: int = 0) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        self.plan = plan
        self.collate = collate
        self.num_workers = num_workers

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        yield from self._batches(0, 0, len(self))

    def _batches(self, epoch: int, start: int, stop: int) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            _PlannedBatches(self.plan, self.collate, epoch),
            batch_size=None,
            sampler=range(start, stop),
            collate_fn=_unchanged,
            num_workers=min(self.num_workers, stop - start),
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its base seed comes from here, not from the global one
        )
        with _quiet_fork():
            batches = iter(loader)
        yield from batches


class ResumableLoader(PlannedLoader):
    """Carries out a plan epoch by epoch, and goes on from a saved state (training).

    The state counts batches handed over, not batches prefetched. A new iteration is a new epoch,
    unless nothing was handed over since the last one or the state was just loaded.

    Args:
        plan: which rows are in which batch.
        collate: makes the batch.
        num_workers: processes that make batches ahead.
        stop: batches in an epoch, where fewer than the plan's (`limit_train_batches`).
        clock: tells the epoch, where somebody else counts them (Lightning's fit loop); without it
            the loader counts.
    """

    def __init__(
        self,
        plan: BatchPlan,
        collate: Collate,
        num_workers: int = 0,
        stop: int | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(plan, collate, num_workers)
        self.stop = len(plan) if stop is None else min(stop, len(plan))
        self._clock = clock
        self.epoch = clock() if clock else 0
        self.position = 0
        self._handed_over = False
        self._restored = False

    def __iter__(self) -> Iterator[Batch]:
        # Being a generator, this runs at the first `next`: an `iter` alone (Lightning calls it to
        # see whether it can) changes nothing, and the clock has settled after a resume.
        self._turn_to_epoch()
        for batch in self._batches(self.epoch, self.position, self.stop):
            self.position += 1
            self._handed_over = True
            self._restored = False
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the batches of it that were handed over, and the rows in each."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "global_batch": self.plan.global_batch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the last batch of `state`.

        With another batch size or number of ranks the run goes on at the same row, as nearly as
        the new batches allow, which is logged.
        """
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        before, now = int(state["global_batch"]), self.plan.global_batch
        if before != now:
            log.warning(
                "the checkpoint was written with %d rows per step over all ranks, this run has %d: "
                "the data go on at about the same place, and not exactly",
                before,
                now,
            )
            self.position = min(self.position * before // now, self.stop)
        self._handed_over, self._restored = False, True

    def _turn_to_epoch(self) -> None:
        told = self._clock() if self._clock else None
        if self._restored:
            if self.position < self.stop:
                return
            # Saved at the very end of its epoch: whatever the clock says, that one is over.
            self.epoch = max(self.epoch + 1, told or 0)
        elif told is not None:
            self.epoch = told
        elif self._handed_over:
            self.epoch += 1
        self.position = 0
        self._handed_over = self._restored = False


class _PlannedBatches(Dataset[Batch]):
    """Item `position` is the whole batch: one process makes it, whichever that is."""

    def __init__(self, plan: BatchPlan, collate: Collate, epoch: int) -> None:
        self.plan, self.collate, self.epoch = plan, collate, epoch

    def __getitem__(self, position: int) -> Batch:
        return self.collate(self.epoch, self.plan.batch(self.epoch, position))


def _unchanged(batch: Any) -> Any:
    return batch


@contextmanager
def _quiet_fork() -> Iterator[None]:
    """Tell tokenizers, whose threads do not survive a fork, that this is known."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ.setdefault(name, "false")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
