"""Ways to weigh the losses of several tasks, by the names that a configuration has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.loss_weighting import (
    dwa_weights,
    geometric_weights,
    random_weights,
    uncertainty_loss,
)
from .learned_weights import Famo, GradNorm
from .method_spec import method_of
from .weighting_base import LEAST, LossWeighting

__all__ = [
    "WEIGHTINGS",
    "DynamicAverage",
    "GeometricMean",
    "RandomWeights",
    "Uncertainty",
    "weighting_from",
]


class Uncertainty(LossWeighting):
    r"""Weights from the noise of each task, which is learned (arXiv:1705.07115).

    $c_t e^{-s_t} L_t + \frac{1}{2} s_t$. The module's optimizer learns $s$; it is a vector and has
    no weight decay. $s = k\theta$ with $\theta$ the parameter, so that under Adam $s$ learns $k$
    times as fast as the network, whose rate it would need thousands of steps with.

    Args:
        tasks: all names.
        regression: names of tasks with a squared error; `None`, those that the module tells by
            `find_regressions`.
        speed: $k$, above 0.

    Raises:
        ValueError: a task is unknown, or the speed not above 0.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        regression: Sequence[str] | None = None,
        speed: float = 100.0,
    ) -> None:
        super().__init__(tasks)
        known = regression or []
        if unknown := [name for name in known if name not in self.tasks]:
            raise ValueError(f"regression has {unknown}; the tasks are {', '.join(self.tasks)}")
        if not speed > 0:
            raise ValueError(f"speed must be above 0, got {speed}")
        self.speed = speed
        self.theta = nn.Parameter(torch.zeros(len(self.tasks)))
        self.regression = regression
        self.factors = [0.5 if name in known else 1.0 for name in self.tasks]

    def find_regressions(self, names: Sequence[str]) -> None:
        """Be told which tasks have a squared error, unless an argument has said so."""
        if self.regression is None:
            self.factors = [0.5 if name in names else 1.0 for name in self.tasks]

    def weights(self, losses: Tensor, chosen: Tensor) -> Tensor:
        """Return $c_t e^{-s_t}$."""
        factors = torch.tensor(self.factors, device=losses.device)
        return (factors * (-self.speed * self.theta.detach()).exp())[chosen]

    def combine(self, losses: Tensor, means: Tensor, chosen: Tensor) -> Tensor:
        """Return the likelihood, by which $s$ learns too."""
        factors = torch.tensor(self.factors, device=losses.device)[chosen]
        return uncertainty_loss(losses, self.speed * self.theta[chosen], factors)


class DynamicAverage(LossWeighting):
    """More weight where the loss has fallen less from epoch to epoch (DWA, arXiv:1803.10704).

    All weights are 1 in the first two epochs.

    Args:
        tasks: all names.
        temperature: above 0.

    Raises:
        ValueError: the temperature is not above 0.
    """

    needs_losses = True
    epoch: Tensor
    past: Tensor

    def __init__(self, tasks: Sequence[str], temperature: float = 2.0) -> None:
        super().__init__(tasks)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.register_buffer("epoch", torch.zeros(2, len(self.tasks)))
        # Mean losses of the epoch before the last, and of the last; 0 where there was none.
        self.register_buffer("past", torch.zeros(2, len(self.tasks)))

    def weights(self, losses: Tensor, chosen: Tensor) -> Tensor:
        """Return the weights of this epoch."""
        before, last = self.past
        seen = (before > 0) & (last > 0)
        ratio = torch.where(seen, last / before.clamp(min=LEAST), 1.0)
        known = dwa_weights(ratio, torch.ones_like(ratio), self.temperature)
        return torch.where(seen.any(), known, torch.ones_like(known))[chosen]

    def update(self, losses: Tensor, chosen: Tensor) -> None:
        """Add a window to the epoch."""
        self.epoch[0, chosen] += losses
        self.epoch[1, chosen] += 1

    def end_epoch(self) -> None:
        """Take the epoch's means."""
        total, count = self.epoch
        mean = torch.where(count > 0, total / count.clamp(min=1), self.past[1])
        self.past.copy_(torch.stack([self.past[1], mean]))
        self.epoch.zero_()


class RandomWeights(LossWeighting):
    """Weights that are drawn for each step, the same on all ranks (RLW, arXiv:2111.10603)."""

    def weights(self, losses: Tensor, chosen: Tensor) -> Tensor:
        """Return the weights of this step."""
        return random_weights(self.key, len(self.tasks)).to(losses)[chosen]


class GeometricMean(LossWeighting):
    """The geometric mean of the losses that a batch has (GLS, arXiv:1904.08492)."""

    needs_losses = True
    needs_all = True

    def weights(self, losses: Tensor, chosen: Tensor) -> Tensor:
        """Return the weights of the losses as they are."""
        return geometric_weights(losses)


#: Classes by the names that a configuration has for them.
WEIGHTINGS: dict[str, Callable[..., LossWeighting]] = {
    "uncertainty": Uncertainty,
    "dwa": DynamicAverage,
    "random": RandomWeights,
    "geometric": GeometricMean,
    "gradnorm": GradNorm,
    "famo": Famo,
}


def weighting_from(spec: str | Mapping[str, Any] | None, tasks: Sequence[str]) -> LossWeighting:
    """Make the weighting that plain data name.

    Args:
        spec: one of `WEIGHTINGS`; or `{"class_path": "dwa", "init_args": {"temperature": 1}}`,
            where the path may also be that of a class; or `None`, all weights 1.
        tasks: their names.

    Raises:
        ValueError: there is no such method, or a number lies outside its range.
        TypeError: it does not take these arguments.

    Example:
        >>> spec = {"class_path": "uncertainty", "init_args": {"regression": ["sts"]}}
        >>> weighting_from(spec, ["nli", "sts"]).factors
        [1.0, 0.5]
    """
    if spec is None:
        return LossWeighting(tasks)
    cls, arguments = method_of("weighting", spec, WEIGHTINGS)
    made: LossWeighting = cls(tasks, **arguments)
    return made
