"""Layers begin to learn one after the other, from the head downwards, or stay frozen."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from ..functional import warmup_steps
from ..modules.optimizer import planned_steps
from ..surgery.depth import parameter_depths

__all__ = ["GradualUnfreezingCallback"]


class GradualUnfreezingCallback(Callback):
    r"""Freezes the lower layers, and lets one more learn after each interval (ULMFiT).

    At step $t$ the head learns and the top $k + \lfloor t / I \rfloor$ layers, with $k$ of them
    from the start; the embeddings come last (Howard and Ruder 2018, arXiv:1801.06146, section
    3.3). Without an interval what is frozen stays so.

    The optimizer holds all parameters from the start, and a frozen one has no gradient, no momentum
    and no weight decay. So a resumed run goes on exactly. In one process no gradient is computed
    below the lowest layer that learns, which saves time and memory; under DDP, whose buckets are
    made for all parameters, gradients are computed and dropped.

    Args:
        layers: $k$, how many layers learn from the start, at least 0 (the head alone).
        interval: $I$, in optimizer steps (int) or as a share of the run (float below 1); `None`
            never lets another layer learn.

    With a callback that trains a part of the network (LoRA, adapters, biases, chosen layers) that
    part joins from the top downwards, and what is frozen stays so.

    Raises:
        ValueError: a number lies outside its range; in a fit, the network has no layers, or nothing
            is trainable in the `layers` that begin.

    Example:
        >>> callback = GradualUnfreezingCallback(layers=1, interval=10)
        >>> [callback.lowest(step, top=7, interval=10) for step in (0, 9, 10, 70)]
        [6, 6, 5, 0]
    """

    def __init__(self, layers: int = 0, interval: int | float | None = 0.1) -> None:
        super().__init__()
        if layers < 0:
            raise ValueError(f"layers must be at least 0, got {layers}")
        if interval is not None and (
            interval <= 0 or (isinstance(interval, float) and interval >= 1)
        ):
            raise ValueError(
                "interval must be steps (an int of at least 1), a share of the run (a float in "
                f"(0, 1)) or None, got {interval}"
            )
        self.layers, self.interval = layers, interval
        self._depths: list[tuple[nn.Parameter, int]] = []
        self._steps: int | None = None
        self._lowest = -1
        self._top = 0

    def lowest(self, step: int, top: int, interval: int | None) -> int:
        """Return the lowest depth that learns at an optimizer step: 0 is the embeddings.

        Args:
            step: the optimizer step, from 0.
            top: the depth of the head.
            interval: in steps; `None` for none.
        """
        more = 0 if interval is None else step // interval
        return max(0, top - self.layers - more)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the depths, and freeze what is not to learn yet."""
        module: Any = pl_module
        network: nn.Module = getattr(module, "network", module)
        depths = parameter_depths(network)
        self._top = max(depths.values())
        if self._top < 2:
            raise ValueError("GradualUnfreezingCallback found no layers to unfreeze")
        parameters = dict(network.named_parameters())
        self._depths = [
            (parameters[n], d) for n, d in depths.items() if parameters[n].requires_grad
        ]
        if self.interval is None:
            self._steps = None
        else:
            self._steps = max(1, warmup_steps(self.interval, planned_steps(trainer) or 0))
            deepest = min((depth for _, depth in self._depths), default=0)
            last = (self._top - self.layers - deepest) * self._steps
            if (total := planned_steps(trainer)) is not None and last > total:
                rank_zero_warn(
                    f"the run has {total} steps, and the lowest weights would begin to learn at "
                    f"step {last}: the lowest layers stay frozen"
                )
        highest = max((depth for _, depth in self._depths), default=0)
        if highest < self.lowest(trainer.global_step, self._top, self._steps):
            raise ValueError(
                f"with layers={self.layers} nothing would learn at first: above layer {highest} "
                "everything is frozen by another technique; give "
                f"layers={self._top - highest} or more"
            )
        self._lowest = -1
        self._settle(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let the next layer learn, if it is time."""
        self._settle(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Drop the gradients of what is frozen, where they were computed."""
        if trainer.world_size > 1:
            for parameter, depth in self._depths:
                if depth < self._lowest:
                    parameter.grad = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave everything trainable."""
        self._release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave everything trainable."""
        self._release()

    def _settle(self, trainer: Trainer, pl_module: LightningModule) -> None:
        lowest = self.lowest(trainer.global_step, self._top, self._steps)
        if lowest == self._lowest:
            return
        self._lowest = lowest
        if trainer.world_size == 1:
            for parameter, depth in self._depths:
                parameter.requires_grad_(depth >= lowest)
        if trainer.loggers:
            step = trainer.global_step
            share = {"gradual_unfreezing/frozen_depths": float(lowest)}
            for logger in trainer.loggers:
                logger.log_metrics(share, step=step)

    def _release(self) -> None:
        for parameter, _ in self._depths:
            parameter.requires_grad_(True)
        self._depths = []
