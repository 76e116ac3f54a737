"""Weights of losses that are learned beside the network: FAMO and GradNorm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ..functional.loss_weighting import (
    AdamMoments,
    adam_step,
    famo_gradient,
    famo_weights,
    gradnorm_gradient,
)
from .weighting_base import LossWeighting

__all__ = ["Famo", "GradNorm"]


class _Learned(LossWeighting):
    """Weights with a vector of their own that Adam learns, after each step.

    Args:
        tasks: all names.
        learning_rate: of Adam, above 0.
        start: of each number.
        decay: towards 0, at least 0.
    """

    needs_losses = True
    learned: Tensor
    adam: Tensor
    steps: Tensor

    def __init__(
        self, tasks: Sequence[str], learning_rate: float, start: float, decay: float = 0.0
    ) -> None:
        super().__init__(tasks)
        if not (learning_rate > 0 and decay >= 0):
            raise ValueError(
                f"learning_rate must be above 0 and decay at least 0, got {learning_rate}, {decay}"
            )
        self.learning_rate, self.decay = learning_rate, decay
        self.register_buffer("learned", torch.full((len(self.tasks),), start))
        self.register_buffer("adam", torch.zeros(2, len(self.tasks)))
        self.register_buffer("steps", torch.zeros(()))

    def descend(self, gradient: Tensor) -> None:
        """Make a step of Adam."""
        moments = AdamMoments(self.adam[0], self.adam[1], self.steps)
        adam_step(self.learned, gradient, moments, self.learning_rate, self.decay)


class Famo(_Learned):
    """Weights by which all losses fall at one pace, without gradients of tasks (arXiv:2306.03792).

    What a step has done to a loss is read off the next batch of that task, where the paper runs the
    same batch once more: cheaper by a forward pass, and noisier. An adversarial or a second pass
    over a batch counts like another batch.

    Args:
        tasks: all names.
        learning_rate: of the logits, above 0.
        decay: of the logits towards equal weights, at least 0.

    Raises:
        ValueError: a number lies outside its range.
    """

    needs_all = True
    before: Tensor

    def __init__(
        self, tasks: Sequence[str], learning_rate: float = 0.025, decay: float = 0.001
    ) -> None:
        super().__init__(tasks, learning_rate, 0.0, decay)
        self.register_buffer("before", torch.zeros(len(self.tasks)))

    def weights(self, losses: Tensor, chosen: Tensor) -> Tensor:
        """Return weights that divide by the losses."""
        return famo_weights(self.learned[chosen], losses)

    def update(self, losses: Tensor, chosen: Tensor) -> None:
        """Compare with the last losses, and remember these."""
        known = self.before[chosen] > 0
        old = chosen[known]
        if len(old):
            gradient = torch.zeros_like(self.learned)
            gradient[old] = famo_gradient(self.learned[old], self.before[old], losses[known])
            self.descend(gradient)
        self.before[chosen] = losses


class GradNorm(_Learned):
    r"""Weights by which gradients are equally long, but for the pace of tasks (arXiv:1711.02257).

    Lengths are those on the last weight matrix that all tasks of the batch reach, of the mean over
    ranks, and over an accumulation window the mean of its batches'. One step of Adam descends to
    the target after each optimizer step; then the weights are scaled to the sum T.

    Args:
        tasks: all names.
        alpha: how strongly tasks are pulled to one pace, at least 0.
        learning_rate: of the weights, above 0.

    Raises:
        ValueError: a number lies outside its range.
    """

    norms: Tensor
    initial: Tensor

    def __init__(
        self, tasks: Sequence[str], alpha: float = 1.5, learning_rate: float = 0.025
    ) -> None:
        super().__init__(tasks, learning_rate, 1.0)
        if alpha < 0:
            raise ValueError(f"alpha must be at least 0, got {alpha}")
        self.alpha = alpha
        self.register_buffer("norms", torch.zeros(2, len(self.tasks)))
        self.register_buffer("initial", torch.zeros(len(self.tasks)))

    def weights(self, losses: Tensor, chosen: Tensor) -> Tensor:
        """Return what was learned."""
        return self.learned[chosen]

    def begin(self, module: LightningModule, batch_idx: int) -> None:
        """Begin a batch."""
        super().begin(module, batch_idx)
        if batch_idx % module.trainer.accumulate_grad_batches == 0:
            self.norms.zero_()

    def before_backward(self, module: LightningModule, losses: Mapping[str, Tensor]) -> None:
        """Measure the gradients of the tasks on the last layer."""
        scaler = getattr(module.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        graphs = {name: loss * scale for name, loss in losses.items() if loss.requires_grad}
        gradients = _last_gradients(graphs, cast(Any, module).shared_parameters())
        if not gradients:
            return
        some = next(iter(gradients.values()))
        rows = torch.zeros(len(self.tasks), some.numel() + 1, device=some.device)
        for name, gradient in gradients.items():
            row = rows[self.tasks.index(name)]
            row[:-1], row[-1] = gradient.flatten().float() / scale, 1.0
        if module.trainer.world_size > 1:
            rows = module.trainer.strategy.reduce(rows, reduce_op="sum")
        present = rows[:, -1] > 0
        lengths = torch.linalg.vector_norm(rows[:, :-1], dim=1) / rows[:, -1].clamp(min=1)
        self.norms += torch.stack([lengths * present, present.float()])

    def update(self, losses: Tensor, chosen: Tensor) -> None:
        """Descend towards equal lengths."""
        self.initial[chosen] = torch.where(self.initial[chosen] > 0, self.initial[chosen], losses)
        measured, counts = self.norms[0, chosen], self.norms[1, chosen]
        norms = measured / counts.clamp(min=1)
        if len(chosen) < 2 or not (norms.isfinite().all() and (counts > 0).all()):
            return
        weights = self.learned[chosen]
        gradient = torch.zeros_like(self.learned)
        found = gradnorm_gradient(weights, norms, losses, self.initial[chosen], self.alpha)
        gradient[chosen] = found
        self.descend(gradient)
        self.learned.clamp_(min=1e-3)
        self.learned.mul_(len(self.tasks) / self.learned.sum())


def _last_gradients(
    losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter]
) -> dict[str, Tensor]:
    """Return the gradients on the last weight matrix that all losses reach; none without one."""
    for parameter in reversed(shared):
        if parameter.ndim < 2 or not parameter.requires_grad:
            continue
        found: dict[str, Tensor] = {}
        for name, loss in losses.items():
            gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
                loss, parameter, retain_graph=True, allow_unused=True
            )
            if gradients[0] is None:
                break
            found[name] = gradients[0]
        if len(found) == len(losses):
            return found
    return {}
