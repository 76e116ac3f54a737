"""When the batches of which task come, as a pure function of (seed, epoch)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..functional.task_sampling import (
    annealed_temperature,
    draw_tasks,
    take_turns,
    task_probabilities,
)

__all__ = ["Sampling", "TaskSchedule", "check_sampling"]

Sampling = Literal["temperature", "proportional", "uniform", "round_robin", "annealed", "weights"]
_SAMPLINGS = get_args(Sampling)
# Those that go by the sizes of the tasks.
_BY_SIZE = ("temperature", "proportional", "annealed")


@dataclass(frozen=True)
class TaskSchedule:
    """Which task each batch of an epoch is of, the same on every rank.

    The batches of one optimizer step are all of one task, so that under accumulation a step is
    that of a batch as large as they are together.

    Attributes:
        sampling: the rule; see `MultiTaskDataModule`.
        sizes: training examples of each task; with `"weights"` the weights.
        batches: in an epoch.
        seed: of the draws.
        temperature: of `"temperature"`.
        cap: size from which on a task counts as no larger.
        epochs: of the run, which `"annealed"` goes by.
        accumulate: batches of an optimizer step.
        used: batches of an epoch that are trained on, where not all are (`limit_train_batches`).

    Example:
        >>> schedule = TaskSchedule("round_robin", (30, 10), batches=6, accumulate=2)
        >>> schedule.tasks(0).tolist()
        [0, 0, 1, 1, 0, 0]
    """

    sampling: Sampling
    sizes: tuple[float, ...]
    batches: int
    seed: int = 0
    temperature: float = 2.0
    cap: int | None = None
    epochs: int = 1
    accumulate: int = 1
    used: int | None = None

    def probabilities(self, epoch: int) -> Tensor:
        """Return how probable each task is in an epoch: float64 `[T]`."""
        if self.sampling in ("uniform", "round_robin"):
            return task_probabilities([1.0] * len(self.sizes))
        temperature = {
            "temperature": self.temperature,
            "annealed": annealed_temperature(epoch, self.epochs),
        }.get(self.sampling, 1.0)
        return task_probabilities(self.sizes, temperature, self.cap)

    def tasks(self, epoch: int) -> NDArray[np.int64]:
        """Return the task of each batch of an epoch: int64 `[batches]`."""
        steps = math.ceil(self.batches / self.accumulate)
        if self.sampling == "round_robin":
            done = epoch * math.ceil((self.used or self.batches) / self.accumulate)
            drawn = take_turns(len(self.sizes), steps, done)
        else:
            drawn = draw_tasks(self.probabilities(epoch), steps, self.seed, epoch)
        each = torch.repeat_interleave(drawn, self.accumulate)[: self.batches]
        return cast(NDArray[np.int64], each.numpy())


def check_sampling(
    sampling: str,
    temperature: float,
    cap: int | None,
    weights: Mapping[str, float] | None,
    batches: str,
    names: Sequence[str],
) -> None:
    """Check the arguments that say which task comes when.

    Args:
        sampling: the rule.
        temperature: of it.
        cap: of it.
        weights: of it.
        batches: whether a batch is of `"one"` task or of `"all"`.
        names: the tasks.

    Raises:
        ValueError: one is unknown, or some do not go together.
    """
    if sampling not in _SAMPLINGS:
        raise ValueError(f"sampling must be one of {', '.join(_SAMPLINGS)}, got {sampling!r}")
    if batches not in ("one", "all"):
        raise ValueError(f"batches must be 'one' or 'all', got {batches!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if batches == "all" and (sampling != "temperature" or weights or cap):
        raise ValueError(
            "batches='all' has a batch of each task in every step, so that nothing is drawn: "
            f"it goes with sampling='temperature', the default, and got {sampling!r}, and without "
            "cap and weights (null on the command line); the module takes weights of the losses"
        )
    if cap is not None and (cap < 1 or sampling not in _BY_SIZE):
        raise ValueError(
            f"cap is a size of at least 1, for sampling by {', '.join(_BY_SIZE)}; got cap={cap} "
            f"and sampling={sampling!r}"
        )
    if (sampling == "weights") != (weights is not None):
        raise ValueError(
            f"weights are for sampling='weights', and that needs them: got sampling={sampling!r} "
            f"and weights={weights!r}"
        )
    if weights is not None and (unknown := sorted(weights.keys() - set(names))):
        raise ValueError(f"weights has {unknown[0]!r}, and the tasks are {', '.join(names)}")
    if weights is not None and (set(weights) != set(names) or min(weights.values()) <= 0):
        raise ValueError(
            f"weights must have a number above 0 for each of {', '.join(names)}; got {weights!r}"
        )
