"""What a data module asks its Trainer, with answers where there is none."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Trainer

__all__ = ["TaskTrainer", "epoch_length", "epoch_number", "planned_epochs", "ranks", "step_batches"]


class TaskTrainer:
    """A Trainer as one task of several sees it: module and data are those of the task.

    Args:
        trainer: answers everything else.
        datamodule: of the task.
        name: of the task.
    """

    def __init__(self, trainer: Trainer, datamodule: Any, name: str) -> None:
        self._trainer, self.datamodule, self._name = trainer, datamodule, name

    @property
    def lightning_module(self) -> Any:
        """The module of the task; that of the whole, if it has no tasks."""
        whole: Any = self._trainer.lightning_module
        return getattr(whole, "tasks", {}).get(self._name, whole)

    def __getattr__(self, name: str) -> Any:
        """Ask the Trainer."""
        return getattr(vars(self)["_trainer"], name)


def ranks(trainer: Trainer | None) -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


def step_batches(trainer: Trainer | None) -> int:
    """Return how many batches of a rank make an optimizer step."""
    return max(1, int(getattr(trainer, "accumulate_grad_batches", 1) or 1))


def epoch_number(trainer: Trainer) -> int:
    """Return the epoch that is running or about to run, also after a resume."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return int(progress.processed)


def epoch_length(trainer: Trainer | None, batches: int) -> int:
    """Return how many of the `batches` of an epoch `limit_train_batches` leaves."""
    limit = trainer.limit_train_batches if trainer else None
    if limit is None:
        return batches
    # As Lightning counts: an int is a number of batches, a float a share of them.
    return min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))


def planned_epochs(trainer: Trainer | None, batches: int) -> int | None:
    """Return how many epochs a fit has, `None` if it has no end, and 1 without a Trainer.

    Args:
        trainer: knows `max_epochs` and `max_steps`, of which the nearer end counts.
        batches: in an epoch.
    """
    if trainer is None:
        return 1
    ends = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        ends.append(trainer.max_epochs)
    if trainer.max_steps >= 0:
        ends.append(math.ceil(trainer.max_steps * step_batches(trainer) / batches))
    return max(1, min(ends)) if ends else None
