"""What an evaluation says of student and teacher together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torchmetrics import Metric

from ..types import Batch, StepOutput
from .distillation_metrics import (
    Differences,
    agreement_of,
    difference_rows,
    distance_of,
    main_metric,
    teacher_metrics,
)
from .scores import Scores
from .teacher_view import mixture, said_of
from .word_predictions import label_list

if TYPE_CHECKING:
    from .base import LMModule
    from .distillation import DistillationModule
    from .teachers import Teachers

__all__ = ["DistillationReport", "continue_comparison", "finish_comparison"]

_STAGES = ("val", "test")


class DistillationReport(nn.Module):
    """The metrics that compare a student with its teachers, of validation and test.

    Args:
        task: the student, with its network built.
    """

    def __init__(self, task: LMModule) -> None:
        super().__init__()
        self.both = nn.ModuleDict({s: nn.ModuleDict(teacher_metrics()) for s in _STAGES})
        #: The student's own metrics, of what the teachers predict.
        self.teacher = nn.ModuleDict({s: nn.ModuleDict(task.build_metrics()) for s in _STAGES})
        self.differences = Differences()

    def update(
        self, task: LMModule, teachers: Teachers, output: StepOutput, batch: Batch, stage: str
    ) -> dict[str, Metric]:
        """Take a batch, and return the metrics to log by name.

        Args:
            task: the student.
            teachers: whose words are in the batch.
            output: of the student's step.
            batch: prepared.
            stage: `"val"` or `"test"`.
        """
        scores = task.scores(output, batch)
        said = [
            said_of(batch, number, scores, alignment, ())
            for number, alignment in enumerate(teachers.alignments)
        ]
        if any(each.logits is None for each in said):
            return {}
        teacher = mixture(scores, said, teachers.options.weights).float()
        scores = scores._replace(logits=scores.logits[..., : teacher.shape[-1]].float())
        items = scores.valid.sum()
        both = cast(Mapping[str, Metric], self.both[stage])
        shown = {"teacher_divergence": both["teacher_divergence"]}
        each = distance_of(scores, teacher)
        shown["teacher_divergence"].update(each.sum() / items.clamp(min=1), items)
        if (same := agreement_of(scores, teacher)) is not None:
            shown["agreement"] = both["agreement"]
            shown["agreement"].update(same.sum() / items.clamp(min=1), items)
        if output.logits is not None and len(teacher) == scores.logits.shape[0]:
            theirs = _like_output(task, output, teacher, scores)
            task.update_metrics(cast(Any, self.teacher[stage]), theirs, batch)
        simple = scores.kind == "classes" and scores.logits.ndim == 2 and "index" in batch
        # The items of a language model are tokens, be there as many as rows.
        simple = simple and task.network.get_output_embeddings() is None
        if stage == "test" and simple and len(batch["index"]) == len(teacher):
            self.differences.update(scores, teacher, batch["index"])
        return shown

    def retention(self, own: Mapping[str, Metric], stage: str) -> float | None:
        """Return the student's main metric as a share of the teacher's; all ranks have to call it.

        Args:
            own: the student's metrics of the stage.
            stage: `"val"` or `"test"`.
        """
        name = main_metric(list(own))
        theirs = cast(Mapping[str, Metric], self.teacher[stage])
        if name is None or not theirs[name].update_called:
            return None
        best = float(theirs[name].compute())
        for metric in theirs.values():
            metric.reset()
        return float(own[name].compute()) / best if best else None

    def rows(self, task: LMModule, datamodule: Any) -> list[dict[str, Any]]:
        """Return the table of examples that both decide differently; all ranks have to call it."""
        if not self.differences.update_called:
            return []
        found = self.differences.compute()
        numbers = found[:, 0].long().tolist()
        names = label_list(task.network.config)
        # Choices have no names, and more or fewer of them than a config says.
        named = [] if all(name.startswith("LABEL_") for name in names) else names
        return difference_rows(found, named, _texts(datamodule, numbers))


def continue_comparison(
    module: DistillationModule, output: StepOutput, batch: Batch, stage: str
) -> None:
    """Let the student go on with an evaluation, and log what compares it with its teachers."""
    task, report = _student_at_work(module), module.report
    task.continue_evaluation(output, batch, stage)
    if not module.teachers.there or report is None:
        return
    for name, metric in report.update(task, module.teachers, output, batch, stage).items():
        module.log(f"{stage}/{name}", metric, batch_size=1)


def finish_comparison(module: DistillationModule, stage: str) -> None:
    """Let the student finish an evaluation, and log how much of the teacher's quality it keeps."""
    task, report = _student_at_work(module), module.report
    task.finish_evaluation(stage)
    if not module.teachers.there or report is None:
        return
    own = cast(Mapping[str, Metric], module.metrics[f"{stage}_metrics"])
    if (share := report.retention(own, stage)) is not None:
        module.log(f"{stage}/retention", share, batch_size=1)


def _student_at_work(module: DistillationModule) -> LMModule:
    """Return the student, able to log as a part of the module that the Trainer runs."""
    task = module.task_module
    task._current_fx_name = module._current_fx_name
    # Its metrics of texts are no part of the module, which alone is moved.
    if task.device != module.device:
        task.to(module.device)
    return task


def _texts(datamodule: Any, numbers: list[int]) -> dict[int, str]:
    """Return the texts of test examples by number, where the data module knows them."""
    if not hasattr(datamodule, "table"):
        return {}
    try:
        table = datamodule.table("test")
    except ValueError:
        table = datamodule.table("val")
    return {n: table.text("text", n) for n in numbers} if "text" in table else {}


def _like_output(task: LMModule, output: StepOutput, teacher: Any, scores: Scores) -> StepOutput:
    """Return the step's output as if the teacher had said it."""
    assert output.logits is not None
    logits = teacher
    if output.logits.ndim != teacher.ndim or output.logits.shape[:-1] != teacher.shape[:-1]:
        logits = teacher.transpose(1, 2) if teacher.ndim == 3 else teacher
        logits = logits.reshape(*output.logits.shape[:-1], logits.shape[-1])
    return StepOutput(torch.zeros_like(output.loss), output.items, logits)
