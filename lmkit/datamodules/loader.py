"""Loaders that carry out a plan of batches, and resume exactly.

`torch.utils.data.DataLoader` draws its order from a generator, counts what it has prefetched, and
is rebuilt by Lightning with another sampler on several devices. Here the plan says which rows a
batch has, the loader only carries it out, and its state is two numbers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..types import Batch
from .batch_plan import Plan

__all__ = ["Collate", "PlannedLoader", "ResumableLoader"]

log = logging.getLogger("lmkit")


class Collate(Protocol):
    """Makes a batch of rows: `epoch`, and row numbers int64 `[B]` with -1 for a filler row."""

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch."""


class PlannedLoader:
    """Carries out a plan from its first batch to its last, always the same epoch (evaluation).

    It is sized, and not a `torch.utils.data.DataLoader`, so that Lightning leaves it as it is. It
    draws nothing from torch's global generator, and starts its workers at the first batch.

    Args:
        plan: which rows are in which batch.
        collate: makes the batch; it travels to the workers, and has to be picklable.
        num_workers: processes that make batches ahead; 0 makes them in this process.
    """

    def __init__(self, plan: Plan, collate: Collate, num_workers: int = 0) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        self.plan = plan
        self.collate = collate
        self.num_workers = num_workers

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        yield from self._batches(0, 0, len(self))

    def starting_at(self, position: int) -> Iterator[Batch]:
        """Return the batches of epoch 0 from number `position` on, `len(self) - position` of them.

        Raises:
            ValueError: `position` lies outside `[0, len(self)]`.
        """
        if not 0 <= position <= len(self):
            raise ValueError(f"position must lie in [0, {len(self)}], got {position}")
        return self._batches(0, position, len(self))

    def batch(self, position: int) -> Batch:
        """Return one batch of epoch 0, without those before it."""
        return self.collate(0, self.plan.batch(0, position))

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
        plan: Plan,
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
                "the checkpoint was written with %d rows (in buckets: tokens) per step over all "
                "ranks, this run has %d: the data go on at about the same place, and not exactly",
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

    def __init__(self, plan: Plan, collate: Collate, epoch: int) -> None:
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
