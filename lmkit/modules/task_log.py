"""What a module of several tasks logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torchmetrics import Metric

from ..types import StepOutput
from .distillation_metrics import main_metric

if TYPE_CHECKING:
    from .multi_task import MultiTaskModule

__all__ = ["log_mean", "step_logs"]


def step_logs(module: MultiTaskModule, outputs: Mapping[str, StepOutput]) -> dict[str, Tensor]:
    """Return what the tasks log of a step, beside the last losses of those that are not in it.

    The stride of the logger and the turns of the tasks may have a factor in common, and some task
    would never be logged.

    Args:
        module: remembers the last losses in training.
        outputs: of the tasks in the step.
    """
    logs: dict[str, Tensor] = {}
    for name, output in outputs.items():
        if module.training and not module.is_further_pass:
            module.last_losses[name] = output.loss.detach()
        logs |= {w if "/" in w else f"train/{name}/{w}": v for w, v in output.logs.items()}
    return {f"train/{name}/loss": loss for name, loss in module.last_losses.items()} | logs


def log_mean(module: MultiTaskModule, stage: str) -> None:
    """Log the mean of the tasks' main metrics, of those that have one and were evaluated.

    All ranks have to call it.

    Args:
        module: at the end of an evaluation.
        stage: `"val"` or `"test"`.
    """
    found = []
    for task in module.tasks.values():
        metrics = cast(Mapping[str, Metric], task.metrics[f"{stage}_metrics"])
        name = main_metric(list(metrics))
        if name is not None and metrics[name].update_called:
            found.append(metrics[name].compute().float())
    if found:
        module.log(f"{stage}/mean", torch.stack(found).mean(), prog_bar=True, batch_size=1)
