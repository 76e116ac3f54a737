"""How near a student comes to its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..functional.distillation import binary_divergence, logit_divergence, value_distance
from ..functional.distillation_teachers import same_choice
from .scores import Scores
from .token_metrics import TokenMean

__all__ = [
    "Differences",
    "agreement_of",
    "difference_rows",
    "distance_of",
    "main_metric",
    "teacher_metrics",
]

# What a task is mostly judged by, the first that it has.
_MAIN = ("f1", "spearman", "accuracy", "micro_f1", "macro_f1", "exact_match")
# Of examples on which both differ.
_MOST = 1000


def teacher_metrics() -> dict[str, Metric]:
    """Make the metrics of an evaluation that compare student and teacher."""
    return {"agreement": TokenMean(), "teacher_divergence": TokenMean()}


def main_metric(names: Sequence[str]) -> str | None:
    """Return the name of the metric that retention is the share of, `None` without one."""
    return next((name for name in _MAIN if name in names), None)


def distance_of(scores: Scores, teacher: Tensor) -> Tensor:
    """Return the divergence from the teacher of each item at temperature 1, float `[N]`."""
    if scores.kind == "value":
        return value_distance(scores.logits, teacher, scores.valid)
    measure = logit_divergence if scores.kind == "classes" else binary_divergence
    return measure(scores.logits, teacher, scores.valid)


def agreement_of(scores: Scores, teacher: Tensor) -> Tensor | None:
    """Return which items both networks decide alike, bool `[N]`; `None` for values."""
    if scores.kind == "value":
        return None
    if scores.kind == "classes":
        return same_choice(scores.logits, teacher, scores.valid)
    return ((scores.logits > 0) == (teacher > 0)).flatten(1).all(1) & scores.valid


class Differences(Metric):
    """The examples on which student and teacher decide differently.

    `compute` returns float64 `[n, 5]` of at most 1,000, the largest divergence first: number of the
    example; class of label (-100 for none), student and teacher; and divergence.
    """

    full_state_update = False
    found: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("found", [], dist_reduce_fx="cat")

    def update(self, scores: Scores, teacher: Tensor, index: Tensor) -> None:
        """Take the items of a batch.

        Args:
            scores: of the student; of kind `"classes"`, one item for each row.
            teacher: its logits, of the same shape.
            index: int64 `[N]`, the number of each example.
        """
        same = agreement_of(scores, teacher)
        assert same is not None
        labels = torch.full_like(index, -100) if scores.labels is None else scores.labels
        decided = labels, scores.logits.argmax(-1), teacher.argmax(-1)
        rows = torch.stack([index, *decided], 1).double()
        each = torch.cat([rows, distance_of(scores, teacher).double().unsqueeze(1)], 1)
        self.found.append(each[scores.valid & ~same])

    def compute(self) -> Tensor:
        """Return the examples."""
        found: Any = self.found
        if isinstance(found, list):
            found = torch.cat([torch.empty(0, 5, dtype=torch.float64), *(f.cpu() for f in found)])
        order = found[:, 4].argsort(descending=True, stable=True)
        kept: Tensor = found[order[:_MOST]]
        return kept


def difference_rows(
    found: Tensor, names: Sequence[str], texts: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Return a table of what `Differences` found.

    Args:
        found: as it computes it.
        names: of the classes; their numbers stand in the table where there are none.
        texts: of the examples by number, where they are known.
    """
    rows = []
    for number, label, ours, theirs, divergence in found.tolist():
        rows.append(
            {
                "example": int(number),
                "text": texts.get(int(number), ""),
                "label": _named(label, names) if label >= 0 else "",
                "student": _named(ours, names),
                "teacher": _named(theirs, names),
                "divergence": divergence,
            }
        )
    return rows


def _named(number: float, names: Sequence[str]) -> str:
    return names[int(number)] if names else str(int(number))
