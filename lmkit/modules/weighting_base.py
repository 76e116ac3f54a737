"""The base of all ways to weigh the losses of several tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ..functional import mix
from ..functional.distillation_inputs import wide_dtype

__all__ = ["LEAST", "LossWeighting"]

#: What a loss below counts as, where its logarithm or its inverse is taken.
LEAST = 1e-8
# Beside the streams of masks, order and dropout.
_STREAM = 0xBB67AE85


class LossWeighting(nn.Module):
    r"""From the losses of the tasks of a batch to one loss; the base of all ways to weigh them.

    $\sum_t \lambda_t L_t$ over the tasks that the batch has. A module calls it in its training
    step, and `begin` in `on_train_batch_start`, `before_backward` in `on_before_backward`, `close`
    in `on_before_optimizer_step` and `end_epoch` in `on_train_epoch_end`. What it has learned are
    buffers and parameters, and so in every checkpoint; they are the same on all ranks.

    Args:
        tasks: all names.
    """

    #: Whether the means of losses over all ranks are needed.
    needs_losses = False
    #: Whether a batch of one task has nothing to be weighed against.
    needs_all = False
    #: Sums and counts of each task's losses in the accumulation window, `[2, T]`.
    window: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.key = 0
        #: The weight of each task in the last training step that it was in, scalars.
        self.latest: dict[str, Tensor] = {}
        self._module: list[LightningModule] = []  # in a list, so that it is no submodule
        self.register_buffer("window", torch.zeros(2, len(self.tasks)), self.needs_losses)

    def weights(self, losses: Tensor, chosen: Tensor) -> Tensor:
        """Return the weights of the tasks of a batch.

        Args:
            losses: `[B]`, their means over all ranks where `needs_losses`; without a graph.
            chosen: int64 `[B]`, the numbers of these tasks.
        """
        return torch.ones_like(losses)

    def combine(self, losses: Tensor, means: Tensor, chosen: Tensor) -> Tensor:
        """Return the loss to differentiate, of losses `[B]` with a graph."""
        return (self.weights(means, chosen).to(losses) * losses).sum()

    def update(self, losses: Tensor, chosen: Tensor) -> None:
        """Learn from the mean losses of a full window."""

    def begin(self, module: LightningModule, batch_idx: int) -> None:
        """Begin a batch, and an accumulation window where there is one."""
        self._module = [module]
        self.key = mix(getattr(module, "seed", None) or 0, module.trainer.global_step, _STREAM)
        if batch_idx % module.trainer.accumulate_grad_batches == 0:
            self.window.zero_()

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Weigh the losses of a batch, and in training remember them.

        Args:
            losses: scalars by task, of some of the tasks.

        Raises:
            ValueError: there is none, or a task is unknown.
        """
        unknown = [name for name in losses if name not in self.tasks]
        if unknown or not losses:
            said = ", ".join(map(repr, unknown)) or "no task"
            raise ValueError(f"losses has {said}; the tasks are {', '.join(self.tasks)}")
        each = torch.stack([loss.to(wide_dtype(loss)) for loss in losses.values()])
        chosen = torch.tensor([self.tasks.index(name) for name in losses], device=each.device)
        means = each.detach().clone()
        if self.needs_losses:
            means = self._remember(means, chosen).clamp(min=LEAST)
        if self.training and torch.is_grad_enabled():
            now = self.weights(means, chosen).detach().clone()
            self.latest |= dict(zip(losses, now, strict=True))
        return self.combine(each, means, chosen)

    def _remember(self, losses: Tensor, chosen: Tensor) -> Tensor:
        """Return the means over ranks, and add them to the window."""
        if not (self.training and torch.is_grad_enabled() and self._module):
            return losses
        part = torch.zeros_like(self.window)
        part[0, chosen], part[1, chosen] = losses, torch.ones_like(losses)
        if self._module[0].trainer.world_size > 1:
            part = self._module[0].trainer.strategy.reduce(part, reduce_op="sum")
        if not getattr(self._module[0], "is_further_pass", False):
            self.window += part
        return part[0, chosen] / part[1, chosen]

    def find_regressions(self, names: Sequence[str]) -> None:
        """Be told which tasks have a squared error."""

    def before_backward(self, module: LightningModule, losses: Mapping[str, Tensor]) -> None:
        """Look at the graph of a batch before it is gone."""

    def close(self, module: LightningModule) -> None:
        """Learn from a full window."""
        if self.needs_losses:
            chosen = self.window[1].nonzero().flatten()
            if len(chosen):
                means = (self.window[0] / self.window[1].clamp(min=1))[chosen]
                self.update(means.clamp(min=LEAST), chosen)

    def end_epoch(self) -> None:
        """Learn from an epoch."""
