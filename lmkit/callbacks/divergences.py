"""How far two predictions of a batch agree, and how that is weighed against its labels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..functional.consistency import (
    as_classes,
    jensen_shannon,
    squared_difference,
    symmetric_divergence,
)
from ..modules import LMModule
from ..modules.distillation_metrics import distance_of
from ..modules.multi_task import MultiTaskModule
from ..modules.scores import Scores
from ..modules.task_batches import parts_of
from ..types import IGNORE_INDEX, Batch, StepOutput

__all__ = ["Divergence", "divergence", "labelled_factors", "task_of", "total_items"]

Divergence = Literal["symmetric", "forward", "jensen_shannon"]


def divergence(first: Scores, second: Scores, kind: Divergence) -> Tensor:
    r"""Compute how far two predictions of a batch are apart, item by item, for every task.

    - `symmetric`: $\mathrm{KL}(p \| q) + \mathrm{KL}(q \| p)$.
    - `forward`: $\mathrm{KL}(p \| q)$, of which only $q$, the second, learns.
    - `jensen_shannon`: $\frac{1}{2} \mathrm{KL}(p \| m) + \frac{1}{2} \mathrm{KL}(q \| m)$.

    Of yes-or-no labels it is the mean over them, of several distributions of an item (start and end
    of an answer) too, and of values the squared difference.

    Args:
        first: scores of one pass.
        second: scores of another pass, of the same items.
        kind: see above.

    Returns:
        float32 `[N]`; 0 where an item does not count.
    """
    one, two, valid = first.logits, second.logits, first.valid
    if kind == "forward":
        return distance_of(second, one)
    if first.kind == "value":
        return squared_difference(one, two, valid)
    if first.kind == "labels":
        one, two = as_classes(one), as_classes(two)
    if kind == "jensen_shannon":
        return jensen_shannon([one, two], valid)
    return symmetric_divergence(one, two, valid)


def total_items(module: LMModule, output: StepOutput, scores: Scores) -> Tensor:
    """Count what a batch is the mean over: the items of its loss, and those without a label.

    Args:
        module: whose own loss may count the latter already, as distillation does.
        output: of the objective.
        scores: of it.

    Returns:
        float32 scalar.
    """
    items = output.items.detach().float()
    if type(module).uses_unlabelled:
        return items
    if scores.labels is None:
        return torch.maximum(items, scores.valid.sum().float())
    labelled = scores.labels != IGNORE_INDEX
    labelled = labelled.flatten(1).any(1) if labelled.dim() > 1 else labelled
    return items + (scores.valid & ~labelled).sum()


def labelled_factors(module: LMModule, datamodule: Any) -> dict[str, float]:
    """Return by what the labels' loss is multiplied so that it is a mean over labelled rows alone.

    Rows without a label share their batches with the others, and would dilute it otherwise.

    Args:
        module: whose own loss may see to that, as distillation does.
        datamodule: of the run, or `None`.

    Returns:
        By task; of a module of one task under "".
    """
    if isinstance(module, MultiTaskModule):
        data = getattr(datamodule, "tasks", {})
        return {n: labelled_factors(t, data.get(n))[""] for n, t in module.tasks.items()}
    bare = int(getattr(datamodule, "unlabelled_rows", 0))
    if not bare or type(module).uses_unlabelled:
        return {"": 1.0}
    rows = int(datamodule.row_count("train"))
    return {"": rows / max(1, rows - bare)}


def task_of(module: LMModule, batch: Batch) -> str:
    """Return the name of the task that a batch is of, as `labelled_factors` has it."""
    if not isinstance(module, MultiTaskModule):
        return ""
    (name,) = parts_of(batch, list(module.tasks))
    return name
