"""What a module logs of a step, and how it evaluates a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from torch import nn
from torchmetrics import Metric

from ..types import Batch, StepOutput

if TYPE_CHECKING:
    from .base import LMModule

__all__ = ["evaluate", "log_step", "make_metrics"]

_STAGES = ("val", "test")

#: Metrics that the progress bar shows.
_SHOWN = ("loss", "accuracy", "f1", "spearman", "bleu")


def log_step(module: LMModule, output: StepOutput, batch_idx: int) -> None:
    """Log the loss of a training step, and what else the objective says of it."""
    # One call of `log` takes a millisecond: only those that a logger or an eye will see.
    if batch_idx % 10 and not module.trainer._logger_connector.should_update_logs:
        return
    module.log("train/loss", output.loss.detach(), prog_bar=True, batch_size=1)
    for name, value in output.logs.items():
        module.log(name if "/" in name else f"train/{name}", value.detach(), batch_size=1)


def make_metrics(module: LMModule) -> nn.ModuleDict:
    """Make the metrics of validation and test, and the tables of a test."""
    made = {f"{stage}_metrics": nn.ModuleDict(module.build_metrics()) for stage in _STAGES}
    return nn.ModuleDict({**made, "test_tables": nn.ModuleDict(module.build_tables())})


def evaluate(
    module: LMModule,
    batch: Batch,
    stage: str,
    batch_idx: int,
    owner: LMModule | None = None,
    place: str = "",
) -> None:
    """Update the metrics with one batch, and log them; Lightning computes them.

    Args:
        module: runs its step without wrappers.
        batch: as the data module makes it.
        stage: `"val"` or `"test"`.
        batch_idx: number of the batch; the tables of a test begin anew at 0.
        owner: the module that the Trainer runs, and that logs, where it is another one.
        place: what the names of its metrics begin with, behind the stage.
    """
    batch = module.prepare(batch)
    output = module.step(batch)
    metrics = cast(Mapping[str, Metric], module.metrics[f"{stage}_metrics"])
    module.update_metrics(metrics, output, batch)
    if stage == "test":
        tables = cast(Mapping[str, Metric], module.metrics["test_tables"])
        if batch_idx == 0:
            for table in tables.values():
                table.reset()
        module.update_tables(tables, output, batch)
    for name, metric in metrics.items():
        (owner or module).log(
            f"{stage}/{place}{name}",
            metric,
            prog_bar=name in _SHOWN and not place,
            batch_size=1,
            add_dataloader_idx=not place,
        )
    module.continue_evaluation(output, batch, stage)
