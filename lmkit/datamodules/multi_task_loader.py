"""The training loader of several tasks, from the loaders of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from ..functional.task_sampling import about_task
from .base import LMDataModule
from .changed_batches import ChangedBatches
from .loader import PlannedLoader, ResumableLoader
from .multi_task_plan import MultiTaskCollate, MultiTaskPlan
from .task import TaskDataModule
from .task_sampling import TaskSchedule
from .trainer_facts import epoch_length, epoch_number, planned_epochs, step_batches

if TYPE_CHECKING:
    from .multi_task import MultiTaskDataModule

__all__ = ["training_loader"]


def training_loader(
    data: MultiTaskDataModule, tasks: Mapping[str, TaskDataModule | LMDataModule]
) -> tuple[ResumableLoader, str]:
    """Join the training batches of several tasks.

    Args:
        data: says how.
        tasks: the data modules, set up.

    Returns:
        The loader, and how long an epoch is in words.

    Raises:
        ValueError: a task has no training examples, or is a stream.
    """
    plans, collates = {}, {}
    for name, own in tasks.items():
        with about_task(name):
            loader = own.train_dataloader()
            if not isinstance(loader, PlannedLoader):
                raise ValueError(
                    "a stream has no end by which its turns could be counted; leave streaming out "
                    "of a task beside others"
                )
            plans[name], collates[name] = loader.plan, loader.collate
    lengths = {name: len(plan) for name, plan in plans.items()}
    total = sum(lengths.values())
    usual = total if data.batches == "one" else math.ceil(total / len(plans))
    window = step_batches(data.trainer)
    # Of whole optimizer steps, whose batches are of one task each.
    batches = math.ceil((data.epoch_batches or usual) / window) * window
    used = epoch_length(data.trainer, batches)
    schedule = _schedule(data, batches, used) if data.batches == "one" else None
    plan = MultiTaskPlan(list(plans.values()), schedule, batches, used)
    epochs = planned_epochs(data.trainer, used or batches)
    for number, collate in enumerate(collates.values()):
        if isinstance(collate, ChangedBatches) and epochs is not None:
            # A task's epochs are its own, over which its transforms may grow stronger.
            collate.epochs = math.ceil(plan.turns_before(number, epochs) / len(plan.plans[number]))
    joined = ResumableLoader(
        plan,
        MultiTaskCollate(collates),
        data.num_workers,
        stop=used,
        clock=partial(epoch_number, data.trainer) if data.trainer else None,
    )
    return joined, _in_words(batches, lengths, schedule)


def _schedule(data: MultiTaskDataModule, batches: int, used: int) -> TaskSchedule:
    sizes = [float(own.row_count("train")) for own in data.tasks.values()]
    if data.weights is not None:
        sizes = [float(data.weights[name]) for name in data.tasks]
    epochs = planned_epochs(data.trainer, used or batches)
    if epochs is None and data.sampling == "annealed":
        raise ValueError(
            "sampling='annealed' goes from the first epoch to the last: set max_epochs or "
            "max_steps of the Trainer"
        )
    how = data.temperature, data.cap, epochs or 1, step_batches(data.trainer), used
    return TaskSchedule(data.sampling, tuple(sizes), batches, data.seed, *how)


def _in_words(batches: int, own: Mapping[str, int], schedule: TaskSchedule | None) -> str:
    shares = schedule.probabilities(0).tolist() if schedule else [1.0] * len(own)
    parts = [
        f"{name} in {share:.1%} of them ({share * batches / own[name]:.1f} of its own epochs)"
        for name, share in zip(own, shares, strict=True)
    ]
    return f"an epoch has {batches:,} batches: {', '.join(parts)}"
