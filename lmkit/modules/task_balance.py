"""How a module of several tasks weighs their losses and aggregates their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from .loss_weighting import weighting_from
from .weighting_base import LossWeighting

if TYPE_CHECKING:
    from .multi_task import MultiTaskModule

__all__ = ["balance_of", "load_gradients", "save_gradients", "see_losses", "weighting_of"]


class TaskBalance(Callback):
    """Tells the weighting and the aggregation of a module of its steps.

    It is a callback of the module itself (`configure_callbacks`), and has no state. The module has
    `weighting`, `aggregation`, `task_losses` and `shared_parameters()`.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from DDP, before layers are compiled; tell which tasks are regressions."""
        module = cast("MultiTaskModule", pl_module)
        _warn_of_single_tasks(module, getattr(trainer, "datamodule", None))
        if module.aggregation is not None:
            module.aggregation.attach(module)
        if module.weighting is not None:
            configs = {name: task.network.config for name, task in module.tasks.items()}
            kinds = {
                name: getattr(config, "problem_type", None) for name, config in configs.items()
            }
            module.weighting.find_regressions([n for n in kinds if kinds[n] == "regression"])

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a batch."""
        module = cast("MultiTaskModule", pl_module)
        if module.weighting is not None:
            module.weighting.begin(module, batch_idx)
        if module.aggregation is not None:
            module.aggregation.begin(module, batch_idx)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Let the weighting look at the graph."""
        module = cast("MultiTaskModule", pl_module)
        if module.weighting is not None:
            module.weighting.before_backward(module, module.task_losses)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the graph, which would hold on to parameters that are cut between two steps."""
        module = cast("MultiTaskModule", pl_module)
        module.task_losses = {name: loss.detach() for name, loss in module.task_losses.items()}

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Let the weighting learn from a full window."""
        module = cast("MultiTaskModule", pl_module)
        if module.weighting is not None:
            module.weighting.close(module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the weighting learn from an epoch."""
        module = cast("MultiTaskModule", pl_module)
        if module.weighting is not None:
            module.weighting.end_epoch()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the Trainer, whose next module may be of one task."""
        callbacks = cast(Any, trainer).callbacks
        cast(Any, trainer).callbacks = [each for each in callbacks if each is not self]


def balance_of(module: MultiTaskModule) -> list[Callback]:
    """Make the callback of a module, if its Trainer has none of an earlier run."""
    there = [] if module._trainer is None else cast(Any, module.trainer).callbacks
    return [] if any(isinstance(each, TaskBalance) for each in there) else [TaskBalance()]


def _warn_of_single_tasks(module: MultiTaskModule, data: Any) -> None:
    """Say that there is nothing to balance in batches of one task."""
    balanced = [] if module.aggregation is None else ["aggregation"]
    if module.weighting is not None and module.weighting.needs_all:
        balanced.append("weighting")
    if balanced and len(module.tasks) > 1 and getattr(data, "batches", "all") == "one":
        named = ", ".join(f"{word}={module.hparams[word]!r}" for word in balanced)
        rank_zero_warn(
            f"{named} does nothing to batches of one task: give the MultiTaskDataModule "
            "batches='all'"
        )


def weighting_of(settings: Mapping[str, Any], tasks: Sequence[str]) -> LossWeighting | None:
    """Make the weighting that the arguments of a module name; `None` where they name none.

    Raises:
        ValueError: there is no such method, a number lies outside its range, or there are weights
            as well.
        TypeError: it does not take these arguments.
    """
    if settings["weighting"] is None:
        return None
    if settings["weights"]:
        raise ValueError(
            "weights are for losses that are added as they are, and weighting finds weights of its "
            f"own ({settings['weighting']!r}): give one of them"
        )
    return weighting_from(settings["weighting"], tasks)


def see_losses(module: MultiTaskModule, losses: dict[str, Tensor]) -> None:
    """Keep the losses of a training step, whose gradients are asked for one by one."""
    if module.training:
        module.task_losses = losses
        if module.aggregation is not None and torch.is_grad_enabled():
            module.aggregation.watch(losses)


def save_gradients(module: MultiTaskModule, entry: dict[str, Any]) -> None:
    """Add the gradients of tasks in a window that is not full to lmkit's entry of a checkpoint."""
    if module.aggregation is not None and entry["pending"]["gradients"]:
        entry["task_gradients"] = module.aggregation.state_dict(module.trainer)


def load_gradients(module: MultiTaskModule, entry: Mapping[str, Any]) -> None:
    """Take up the gradients of `save_gradients`."""
    if module.aggregation is not None:
        module.aggregation.load_state_dict(entry.get("task_gradients", {}))
