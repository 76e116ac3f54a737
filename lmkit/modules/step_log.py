"""What a module logs of a step and of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import LightningModule
from torchmetrics import Metric

from ..types import StepOutput

__all__ = ["log_metrics", "log_step"]


def log_step(module: LightningModule, output: StepOutput, batch_idx: int) -> None:
    """Log the loss of a training step, and what else the objective says of it."""
    # One call of `log` takes a millisecond: only those that a logger or an eye will see.
    if batch_idx % 10 and not module.trainer._logger_connector.should_update_logs:
        return
    module.log("train/loss", output.loss.detach(), prog_bar=True, batch_size=1)
    for name, value in output.logs.items():
        module.log(name if "/" in name else f"train/{name}", value.detach(), batch_size=1)


def log_metrics(module: LightningModule, metrics: Mapping[str, Metric], stage: str) -> None:
    """Log the metrics of an evaluation as `val/...` or `test/...`; Lightning computes them."""
    for name, metric in metrics.items():
        module.log(f"{stage}/{name}", metric, prog_bar=name == "loss", batch_size=1)
