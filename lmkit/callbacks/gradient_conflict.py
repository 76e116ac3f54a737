"""Whether the gradients of several tasks agree, and what each has of the update."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..functional.gramian import cosines, gradient_shares, gramian
from ..modules.gradient_aggregation import Aggregated
from ..modules.task_gradients import TaskGradients, keep_graphs
from ..surgery.arguments import check_whole

__all__ = ["GradientConflictCallback"]


class GradientConflictCallback(Callback):
    r"""Logs how the gradients of tasks on the parameters that they share stand to each other.

    - `gradients/cosine/<a>/<b>`: $\cos(g_a, g_b)$ of each two tasks of a step; below 0 they are in
      conflict. `gradients/conflicts` is the share of such pairs.
    - `gradients/weight/<task>`: $w_t$ of the update $d = \sum_t w_t g_t$; 1 of a plain sum.
    - `gradients/share/<task>`: $w_t \langle g_t, d \rangle / \|d\|^2$, what part of the update it
      makes. They add up to 1; one below 0 is of a task that the others outvote.

    Gradients are those of the loss as it is weighed, and means over all ranks. Where the module
    aggregates gradients, all is there already; otherwise a step that is logged costs one more
    backward pass for each task and their vectors in memory, and of an accumulation window the last
    batch is looked at.

    Args:
        every_n_steps: optimizer steps from one look to the next, at least 1.

    Raises:
        ValueError: `every_n_steps` is no whole number of at least 1.
        TypeError: in `setup`, the module has no tasks.

    Example:
        >>> GradientConflictCallback(every_n_steps=10).every_n_steps
        10
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__()
        check_whole("every_n_steps", every_n_steps, 1)
        self.every_n_steps = every_n_steps
        #: What was logged last.
        self.figures: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module has several tasks."""
        if not (hasattr(pl_module, "shared_parameters") and hasattr(pl_module, "task_losses")):
            raise TypeError(
                "GradientConflictCallback compares the gradients of tasks, and "
                f"{type(pl_module).__name__} has one loss: use it with a MultiTaskModule, or a "
                "module with task_losses and shared_parameters()"
            )
        if stage == "fit":
            keep_graphs()
            data = getattr(trainer, "datamodule", None)
            if getattr(data, "batches", "all") == "one":
                rank_zero_warn(
                    "GradientConflictCallback compares tasks of one step, and the steps of "
                    "batches='one' have one each: give the MultiTaskDataModule batches='all'"
                )

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Compute the gradients of the tasks, where nobody else does."""
        if self._is_due(trainer) and getattr(pl_module, "aggregation", None) is None:
            self._log(trainer, _look(trainer, pl_module, loss))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take what the aggregation has computed."""
        aggregation: Any = getattr(pl_module, "aggregation", None)
        if self._is_due(trainer) and aggregation is not None:
            self._log(trainer, aggregation.last)

    def _is_due(self, trainer: Trainer) -> bool:
        last = not trainer.fit_loop._should_accumulate()
        return last and trainer.global_step % self.every_n_steps == 0

    def _log(self, trainer: Trainer, found: Aggregated | None) -> None:
        if found is None:
            return
        figures, angles = {}, cosines(found.gramian).tolist()
        pairs = list(combinations(range(len(found.tasks)), 2))
        for one, two in pairs:
            figures[f"gradients/cosine/{found.tasks[one]}/{found.tasks[two]}"] = angles[one][two]
        if pairs:
            conflicts = sum(angles[one][two] < 0 for one, two in pairs)
            figures["gradients/conflicts"] = conflicts / len(pairs)
        shares = gradient_shares(found.gramian, found.weights).tolist()
        for task, weight, share in zip(found.tasks, found.weights.tolist(), shares, strict=True):
            figures[f"gradients/weight/{task}"] = weight
            figures[f"gradients/share/{task}"] = share
        self.figures = figures
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)


def _look(trainer: Trainer, module: Any, loss: Tensor) -> Aggregated | None:
    """Compute the gradient of each task; `None` where one is not finite."""
    losses: dict[str, Tensor] = {n: x for n, x in module.task_losses.items() if x.requires_grad}
    window = TaskGradients(module.shared_parameters(), [])
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        loss, list(losses.values()), retain_graph=True, allow_unused=True
    )
    for (name, value), factor in zip(losses.items(), found, strict=True):
        if factor is None:
            continue
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            value, window.shared, grad_outputs=factor, retain_graph=True, allow_unused=True
        )
        window.add(name, window.shared, gradients)
    tasks = list(getattr(module, "tasks", losses))
    window.reduce(trainer.strategy, tasks)
    names = [name for name in tasks if name in window.rows]
    try:
        inner = gramian([window.rows[name] for name in names], names)
    except ValueError:
        return None
    return Aggregated(tuple(names), inner, torch.ones(len(names), dtype=torch.float64))
