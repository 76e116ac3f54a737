"""A moving average of the weights that are trained, and what a network says with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..types import Batch, Objective, StepOutput

__all__ = ["MomentumWeights"]


class MomentumWeights:
    r"""$\bar\theta \leftarrow \beta \bar\theta + (1 - \beta) \theta$ after each optimizer step.

    Where units are removed in the middle of a fit, the average of what was cut begins anew.

    Args:
        module: whose trainable weights are averaged; those that are frozen are shared, and those
            that thaw later stay so.
        state: averages of an earlier run, by name; then these are the ones that are averaged.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> average = MomentumWeights(layer)
        >>> _ = nn.init.constant_(layer.weight, 1.0), average.weights["weight"].zero_()
        >>> average.update(0.75)
        >>> average.weights["weight"].item()
        0.25
    """

    def __init__(self, module: nn.Module, state: Mapping[str, Tensor] | None = None) -> None:
        self._runner = _Runner(module)
        known = state or {}
        self.weights: dict[str, Tensor] = {
            name: known[name].to(own.detach(), copy=True) if known else own.detach().clone()
            for name, own in module.named_parameters()
            if (name in known if known else own.requires_grad)
        }

    def update(self, decay: float) -> None:
        r"""Move the averages towards the weights.

        Args:
            decay: $\beta$, in `[0, 1]`.
        """
        own = self._follow()
        with torch.no_grad():
            for name, average in self.weights.items():
                average.lerp_(own[name], 1.0 - decay)

    @torch.no_grad()
    def run(self, objective: Objective, batch: Batch) -> StepOutput:
        """Return what an objective of the module says with the averages for its weights."""
        self._follow()
        swapped = {f"module.{name}": average for name, average in self.weights.items()}
        result: StepOutput = functional_call(self._runner, swapped, (objective, batch))
        return result

    def _follow(self) -> dict[str, Tensor]:
        """Begin anew with what was removed or cut since; return the weights that are averaged."""
        now = {n: p.detach() for n, p in self._runner.module.named_parameters()}
        own = {name: now[name] for name in self.weights if name in now}
        self.weights = {
            name: self.weights[name] if self.weights[name].shape == there.shape else there.clone()
            for name, there in own.items()
        }
        return own

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the averages by name."""
        return {name: average.clone() for name, average in self.weights.items()}


class _Runner(nn.Module):
    """Calls a function as if it were the forward of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, objective: Objective, batch: Batch) -> StepOutput:
        return objective(batch)
