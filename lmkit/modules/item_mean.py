"""The mean over all items of an optimizer step, however they fall into batches and ranks."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from ..types import StepOutput

__all__ = ["ItemMean", "shares_of_ranks"]

# The unit of the loss inside an accumulation window: large enough that a batch's loss keeps its
# usual magnitude, so that the loss scaling of float16 is not disturbed.
_UNIT = 256.0

# Items may be weights, and add up to less than one.
_LEAST = 1e-12


class ItemMean:
    """Scales batches so that a step's gradient is that of the mean over all its items.

    Lightning averages over the batches of an accumulation window and over ranks, so that a token
    in a batch with few tokens weighs more than one in a batch with many. Here, over one batch per
    step the loss is scaled by its share of the items of all ranks; over a window the gradients are
    sums, and divided by the number of items when the window is full.
    """

    def __init__(self) -> None:
        self.window = torch.zeros(())

    def scale(self, output: StepOutput, trainer: Trainer, again: bool) -> Tensor:
        """Return the loss to differentiate.

        Args:
            output: of the objective.
            trainer: knows ranks and window.
            again: whether this batch's items were counted before (a technique's extra pass).
        """
        items = output.items.detach().to(output.loss)
        if trainer.accumulate_grad_batches > 1:
            if not again:
                self.window = self.window.to(items) + items
            return output.loss * (items / _UNIT)
        if trainer.world_size == 1:
            return output.loss
        return output.loss * shares_of_ranks(items, trainer)

    def factor(self, trainer: Trainer) -> Tensor | float:
        """Return what the gradients of a full window are to be multiplied by.

        `close` does so, but only after the callbacks' own `on_before_optimizer_step`. All ranks
        have to call it.
        """
        batches = trainer.accumulate_grad_batches
        if batches == 1:
            return 1.0
        total = trainer.strategy.reduce(self.window.clone(), reduce_op="sum")
        return _UNIT * batches * trainer.world_size / total.clamp(min=_LEAST)

    def close(self, optimizer: Optimizer, trainer: Trainer) -> None:
        """Divide the gradients of a full window by its number of items."""
        if trainer.accumulate_grad_batches == 1:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, self.factor(trainer))
        self.window = torch.zeros_like(self.window)


def shares_of_ranks(items: Tensor, trainer: Trainer) -> Tensor:
    """Return by what to multiply mean losses so that their mean over ranks is that over all items.

    Args:
        items: of any shape, how many each loss of this rank is the mean of.
        trainer: knows the ranks, all of which have to call this.

    Returns:
        As `items`.
    """
    total = trainer.strategy.reduce(items.clone(), reduce_op="sum")
    return items * trainer.world_size / total.clamp(min=_LEAST)
