"""Further passes over the batch of a step, made as Lightning makes its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from .quiet import quiet

__all__ = ["Passes"]


class Passes:
    """Makes passes over the batch of a step, as Lightning makes its own.

    Each goes through the strategy (and so through DDP) and autocast; its loss is divided by
    `accumulate_grad_batches` and scaled by the gradient scaler, and nothing is logged. Of several
    ranks only the last pass adds up gradients over ranks.

    Args:
        trainer: in a step of a fit.
        module: that is trained.
        batch: of the step.
        batch_idx: its number.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.trainer, self.module = trainer, module
        takes = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        self._arguments = (batch, batch_idx) if takes else (batch,)
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)

    def backward(self, weight: float, last: bool) -> None:
        """Add the gradient of the loss, times a weight, to that of the parameters."""
        with self._loss(last) as loss:
            self.module.backward(loss * weight)

    def gradients(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradient of the loss by some tensors alone, in an unknown scale."""
        with self._loss(False) as loss:
            return list(torch.autograd.grad(loss, list(tensors), allow_unused=True))

    @contextmanager
    def _loss(self, adds_up: bool) -> Iterator[Tensor]:
        strategy = self.trainer.strategy
        alone: Any = nullcontext()
        if isinstance(strategy, ParallelStrategy) and not adds_up:
            alone = strategy.block_backward_sync()
        with quiet(self.module), alone:
            output: Any = strategy.training_step(*self._arguments)
            loss = output if isinstance(output, Tensor) else output["loss"]
            loss = loss / self.trainer.accumulate_grad_batches
            yield loss if self._scaler is None else self._scaler.scale(loss)
