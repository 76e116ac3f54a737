"""How a module of several tasks weighs their losses and aggregates their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from .loss_weighting import weighting_from
from .own_callbacks import OwnCallback
from .weighting_base import LossWeighting

if TYPE_CHECKING:
    from .multi_task import MultiTaskModule

__all__ = ["TaskBalance", "see_losses", "weighting_of"]


#: How many times larger than all others the loss of a regression is when it is warned of.
LARGE = 3.0


class TaskBalance(OwnCallback):
    """Tells the weighting and the aggregation of a module of its steps.

    The module has `weighting`, `aggregation`, `task_losses`, `last_losses` and
    `shared_parameters()`.
    """

    _compared = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from DDP, before layers are compiled; tell which tasks are regressions."""
        module = cast("MultiTaskModule", pl_module)
        self._compared = module.weighting is not None or len(module.tasks) == 1
        _warn_of_single_tasks(module, getattr(trainer, "datamodule", None))
        if module.aggregation is not None:
            module.aggregation.attach(module)
        if module.weighting is not None:
            module.weighting.find_regressions(_regressions(module))

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

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the weights; once all tasks had a turn, warn of a regression that drowns others."""
        module = cast("MultiTaskModule", pl_module)
        if module.weighting is not None and trainer._logger_connector.should_update_logs:
            latest = module.weighting.latest.items()
            module.log_dict({f"train/{n}/weight": weight for n, weight in latest}, batch_size=1)
        if not self._compared and len(module.last_losses) == len(module.tasks):
            self._compared = True
            _warn_of_large_values(module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the weighting learn from an epoch."""
        module = cast("MultiTaskModule", pl_module)
        if module.weighting is not None:
            module.weighting.end_epoch()


def _regressions(module: MultiTaskModule) -> list[str]:
    """Return the tasks whose labels are values."""
    configs = {name: task.network.config for name, task in module.tasks.items()}
    kinds = {name: getattr(config, "problem_type", None) for name, config in configs.items()}
    return [name for name in kinds if kinds[name] == "regression"]


def _warn_of_large_values(module: MultiTaskModule) -> None:
    """Say that a sum of losses will learn a regression of large values and little else."""
    losses = {name: float(x) * module.loss_weights[name] for name, x in module.last_losses.items()}
    for name in _regressions(module):
        others = max(losses[other] for other in losses if other != name)
        if losses[name] > LARGE * others:
            rank_zero_warn(
                f"the first loss of {name!r} is {losses[name]:.3g}, and that of no other task more "
                f"than {others:.3g}: their sum will learn {name!r} and little else. Bring its "
                "labels to a range of 1, or set weights"
            )


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
