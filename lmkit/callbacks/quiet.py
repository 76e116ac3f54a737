"""Running a training step once more without a trace in logs and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

from ..modules import LMModule

__all__ = ["quiet"]

_MUTED = ("log", "log_dict")


@contextmanager
def quiet(module: LightningModule) -> Iterator[None]:
    """Let a module log nothing inside the block, and leave its metrics as they are.

    A module of lmkit does neither in a pass over a batch that it has seen already.

    Args:
        module: any LightningModule.

    Example:
        >>> class Loud(LightningModule):
        ...     def training_step(self, batch):
        ...         self.log("train/loss", batch)
        >>> with quiet(module := Loud()):
        ...     module.training_step(1.0)
        >>> "log" in vars(module)
        False
    """
    if isinstance(module, LMModule):
        yield
        return
    own = {name: vars(module)[name] for name in _MUTED if name in vars(module)}
    metrics = [part for part in module.modules() if isinstance(part, Metric)]
    kept = [(metric, _state(metric)) for metric in metrics]
    for name in _MUTED:
        object.__setattr__(module, name, _nothing)
    try:
        yield
    finally:
        for name in _MUTED:
            object.__delattr__(module, name)
        for name, value in own.items():
            object.__setattr__(module, name, value)
        for metric, state in kept:
            for name, value in state.items():
                setattr(metric, name, value)


def _nothing(*_: Any, **__: Any) -> None:
    """Take the place of a method that logs."""


def _state(metric: Metric) -> dict[str, Any]:
    """Copy what an update changes: sums in place, lists by appending."""
    state: dict[str, Any] = {
        name: value.clone() if isinstance(value, Tensor) else list(value)
        for name, value in metric.metric_state.items()
    }
    return {**state, "_update_count": metric._update_count, "_computed": metric._computed}
