"""Adversarial weight perturbation: learning at the worst neighbour of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ..functional.adversarial import weight_step
from ..modules.optimizer import planned_steps
from .adversary import check_share
from .extra_passes import ExtraPassCallback
from .passes import Passes

__all__ = ["AWPCallback"]


class AWPCallback(ExtraPassCallback):
    r"""Trains with the gradient that the loss has at weights which were moved against it.

    $w \nabla \mathcal{L}(\theta) + (1 - w) \nabla \mathcal{L}(\theta + v)$ with
    $v_l = \gamma \lVert \theta_l \rVert\, g_l / \lVert g_l \rVert$ for each matrix $l$ that learns,
    $g = \nabla \mathcal{L}(\theta)$ (Wu et al. 2020, arXiv:2004.05884): weights around which the
    loss is flat are preferred. Biases and normalizations stay. The step starts from $\theta$, which
    is put back to the last bit. In the paper $w = 0$ and the texts are adversarial too.

    $g$ is of the batches of all ranks at once. Over an accumulation window each batch has its own
    $v$, so that two accumulated batches are not one of twice the size.

    A step takes two passes, and memory for the moved weights. Logs `awp/loss`, the loss at
    $\theta + v$. Works on any LightningModule that optimizes automatically; see
    `ExtraPassCallback`.

    Args:
        gamma: $\gamma$, at least 0; 0 is plain training.
        clean_weight: $w$, in `[0, 1)`.
        start: share of the run that is trained plainly first, in `[0, 1)`.

    Raises:
        ValueError: a number lies outside its range; in `setup`, see `ExtraPassCallback`; in a fit,
            `start` is set and the run has no end.

    Example:
        >>> AWPCallback(gamma=0.001).first_weight
        1.0
    """

    word: ClassVar[str] = "awp"
    perturbs_embeddings: ClassVar[bool] = False

    def __init__(self, gamma: float = 0.005, clean_weight: float = 0.5, start: float = 0.0) -> None:
        super().__init__()
        check_share("gamma", gamma, 0.0)
        for name, value in (("clean_weight", clean_weight), ("start", start)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {value}")
        self.gamma, self.clean_weight, self.start = gamma, clean_weight, start
        self._first_step = 0
        self._parameters: list[nn.Parameter] = []
        self._window: list[Tensor | None] = []

    @property
    def is_idle(self) -> bool:
        """Whether nothing is moved."""
        return self.gamma == 0

    def acts(self, trainer: Trainer) -> bool:
        """Act when the plain part of the run is over."""
        return trainer.global_step >= self._first_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn how long the run is."""
        super().on_train_start(trainer, pl_module)
        total = planned_steps(trainer) if self.start else 0
        if total is None:
            raise ValueError(
                f"start={self.start} is a share of the run, and the run has no end: set max_steps "
                "of the Trainer, or leave start out"
            )
        self._first_step = round(self.start * total)
        self._parameters = list(pl_module.parameters())

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Put aside what the window has gathered: the gradient of this batch is wanted alone."""
        if self._is_due:
            self._window = [p.grad for p in self._parameters]
            for parameter in self._parameters:
                parameter.grad = None

    def passes(self, passes: Passes) -> None:
        """Move the weights, learn there, and move them back."""
        moved = [p for p in self._parameters if p.requires_grad and p.dim() > 1]
        # Also of those without one, so that all ranks have as many.
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in moved]
        gradients = _of_all_ranks(passes.trainer, own)
        with _displaced(moved, gradients, self.gamma):
            self._gather()
            passes.backward(1.0 - self.clean_weight, last=True)

    def _gather(self) -> None:
        """Add the weighed gradient of this batch to that of the window."""
        for parameter, before in zip(self._parameters, self._window, strict=True):
            own = parameter.grad
            if own is not None:
                own.mul_(self.clean_weight)
            if before is not None:
                parameter.grad = before if own is None else before.add_(own)
        self._window = []


def _of_all_ranks(trainer: Trainer, gradients: list[Tensor]) -> list[Tensor]:
    """Return the mean over ranks, where DDP has not taken it: inside an accumulation window."""
    if trainer.world_size == 1 or getattr(
        trainer.strategy.model, "require_backward_grad_sync", False
    ):
        return gradients
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat = trainer.strategy.reduce(flat, reduce_op="mean")
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(own) for part, own in zip(parts, gradients, strict=True)]


@contextmanager
def _displaced(
    parameters: list[nn.Parameter], gradients: list[Tensor], gamma: float
) -> Iterator[None]:
    """Move the parameters inside the block, and put back behind it what they were."""
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.add_(weight_step(parameter, gradient, gamma))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)
