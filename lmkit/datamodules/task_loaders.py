"""The loaders of a downstream task: which examples are in which batch, and who makes it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .batch_plan import BatchPlan
from .every_row import check_fixed
from .example_table import ExampleTable
from .length_plan import LengthPlan
from .loader import Collate, PlannedLoader, ResumableLoader
from .trainer_facts import epoch_length, epoch_number, ranks, step_batches

if TYPE_CHECKING:
    from .task import TaskDataModule

__all__ = ["evaluation_loader", "every_row_loader", "prediction_loader", "train_loader"]


def train_loader(data: TaskDataModule) -> ResumableLoader:
    """Return the training batches of this rank, drawn anew each epoch."""
    table = data.table("train")
    overfit = bool(getattr(data.trainer, "overfit_batches", 0))
    lengths, batches = data.lengths(table, training=True), step_batches(data.trainer)
    how = *ranks(data.trainer), None if overfit else data.seed, data.classes(table)
    plan = LengthPlan(lengths, data.batch_size, *how, accumulate=batches)
    return ResumableLoader(
        plan,
        _collator(data, table, "train"),
        data.num_workers,
        stop=epoch_length(data.trainer, len(plan)),
        clock=partial(epoch_number, data.trainer) if data.trainer else None,
    )


def evaluation_loader(data: TaskDataModule, split: str) -> PlannedLoader:
    """Return the batches of `val` or `test` of this rank."""
    table = data.table(split)
    plan = LengthPlan(data.lengths(table), _size(data, split), *ranks(data.trainer))
    return PlannedLoader(plan, _collator(data, table, split), data.num_workers)


def prediction_loader(data: TaskDataModule, table: ExampleTable) -> PlannedLoader:
    """Return the rows to predict on, in order."""
    plan = BatchPlan(len(table), _size(data, "predict"), *ranks(data.trainer))
    return PlannedLoader(plan, data.collator(table, training=False), data.num_workers)


def every_row_loader(data: TaskDataModule, split: str, batch_size: int | None) -> PlannedLoader:
    """Return each row of a split once, see `TaskDataModule.every_row`."""
    check_fixed(data, split, batch_size)
    table = data.table(split)
    plan = LengthPlan(data.lengths(table), batch_size or _size(data, split))
    return PlannedLoader(plan, data.collator(table, split == "train"), data.num_workers)


def _size(data: TaskDataModule, split: str) -> int:
    own = None if split == "train" else data.eval_batch_size
    return own or data.batch_size


def _collator(data: TaskDataModule, table: ExampleTable, split: str) -> Collate:
    usual, how = data.collator(table, split == "train"), data.augmentation
    return how.collator(data, table, split, usual) if how else usual
