"""Metrics and tables of classification and regression, right for any batch size and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MultilabelF1Score,
)
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from ..figures import bar_figure, confusion_figure, reliability_figure, scatter_figure
from ..functional.classification import regression_loss
from ..types import IGNORE_INDEX, StepOutput
from .token_metrics import TokenMean

__all__ = [
    "Confusion",
    "LabelCounts",
    "Reliability",
    "ValuePairs",
    "class_figures",
    "class_rows",
    "label_rows",
    "task_metrics",
    "update_class_metrics",
]


def task_metrics(task: str, classes: int) -> dict[str, Metric]:
    """Make the metrics of a kind of task, beside its loss.

    Args:
        task: `"single_label"`, `"multi_label"` or `"regression"`.
        classes: how many there are.
    """
    # A check of the inputs waits for the device in every batch.
    quick: dict[str, Any] = {"validate_args": False}
    if task == "regression":
        return {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef(), "mse": TokenMean()}
    if task == "multi_label":
        return {
            "accuracy": TokenMean(),
            "f1": MultilabelF1Score(classes, average="micro", **quick),
            "macro_f1": MultilabelF1Score(classes, average="macro", **quick),
        }
    return {
        "accuracy": MulticlassAccuracy(classes, average="micro", **quick),
        "macro_f1": MulticlassF1Score(classes, average="macro", **quick),
        "mcc": MulticlassMatthewsCorrCoef(classes, **quick),
    }


def update_class_metrics(
    metrics: Mapping[str, Metric],
    output: StepOutput,
    labels: Tensor,
    task: str,
    threshold: float,
) -> None:
    """Give `loss` and the metrics of `task_metrics` one batch, without its fillers.

    Args:
        metrics: by name.
        output: of the step, with logits `[B, C]`.
        labels: as of the losses: -100 or NaN in a filler.
        task: `"single_label"`, `"multi_label"` or `"regression"`.
        threshold: from which probability on one of several labels is predicted.
    """
    assert output.logits is not None
    metrics["loss"].update(output.loss, output.items)
    logits = output.logits.detach().float()
    there = labels != IGNORE_INDEX if task == "single_label" else ~labels.isnan()
    there = there.reshape(len(labels), -1).all(1)
    labels, logits = labels[there], logits[there]
    if not len(labels):
        return
    done = {"loss"}
    if task == "regression":
        metrics["mse"].update(*regression_loss(logits, labels))
        done.add("mse")
        logits = logits.reshape(-1)
    elif task == "multi_label":
        # The metrics' own threshold is 0.5.
        logits, labels = (logits.sigmoid() >= threshold).float(), labels.long()
        right = (logits == labels).float()
        metrics["accuracy"].update(right.mean(), torch.tensor(right.numel()))
        done.add("accuracy")
    for name, metric in metrics.items():
        if name not in done:
            metric.update(logits, labels)


def class_figures(
    found: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, Any]:
    """Draw what a test found: scores of the classes, confusion, reliability, values.

    Args:
        found: results of `Confusion`, `Reliability` or `ValuePairs`, by name.
        rows: of `class_rows` or `label_rows`.
        names: of the classes.
    """
    made: dict[str, Any] = {}
    if rows:
        shown = ("precision", "recall", "f1")
        made["classes"] = bar_figure({row["label"]: {s: row[s] for s in shown} for row in rows})
    if "confusion" in found:
        made["confusion"] = confusion_figure(found["confusion"].cpu(), names)
    if "reliability" in found:
        sure, right, count = bins = found["reliability"].cpu()
        error = Reliability.calibration_error(bins)
        made["reliability"] = reliability_figure(sure, right, count, error)
    if "pairs" in found:
        true, predicted = found["pairs"].cpu()
        made["values"] = scatter_figure(true, predicted)
    return made


class Confusion(Metric):
    """How often each class was taken for which: int64 `[C, C]`, the true class as the row."""

    full_state_update = False
    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state(
            "counts", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits `[B, C]` and labels int64 `[B]`, -100 for one that does not count."""
        there = labels != IGNORE_INDEX
        places = labels[there] * self.classes + logits[there].argmax(-1)
        found = torch.bincount(places, minlength=self.classes**2)
        self.counts = self.counts + found.reshape(self.classes, self.classes)

    def compute(self) -> Tensor:
        """Return the counts over all batches and ranks."""
        return self.counts


class LabelCounts(Metric):
    """True positives, predicted and true labels of each class: int64 `[3, C]` (multi-label)."""

    full_state_update = False
    counts: Tensor

    def __init__(self, classes: int, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold
        self.add_state("counts", torch.zeros(3, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits and labels, both `[B, C]`, NaN in an example that does not count."""
        there = ~labels.isnan().any(-1)
        true = labels[there] > 0.5
        said = logits[there].float().sigmoid() >= self.threshold
        found = torch.stack([(true & said).sum(0), said.sum(0), true.sum(0)])
        self.counts = self.counts + found

    def compute(self) -> Tensor:
        """Return the counts over all batches and ranks."""
        return self.counts


class Reliability(Metric):
    r"""How often a model is right when it says how sure it is (Guo et al., arXiv:1706.04599).

    Predictions fall into bins of equal width by the probability of the predicted class.
    `compute` gives, for each bin, mean confidence, accuracy and count, float `[3, bins]`;
    `calibration_error` is $\sum_b \frac{n_b}{N} |\mathrm{acc}_b - \mathrm{conf}_b|$.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins
        double = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.add_state("sums", torch.zeros(3, bins, dtype=double), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits `[B, C]` and labels int64 `[B]`, -100 for one that does not count."""
        there = labels != IGNORE_INDEX
        sure, said = logits[there].float().softmax(-1).max(-1)
        place = (sure * self.bins).long().clamp(max=self.bins - 1)
        each = torch.stack([sure, said == labels[there], torch.ones_like(sure)]).to(self.sums)
        self.sums = self.sums + torch.zeros_like(self.sums).index_add(1, place, each)

    def compute(self) -> Tensor:
        """Return confidence, accuracy and count of each bin; 0 in an empty one."""
        count = self.sums[2]
        return torch.stack([*(self.sums[:2] / count.clamp(min=1)), count])

    @staticmethod
    def calibration_error(bins: Tensor) -> float:
        """Return the expected calibration error of what `compute` returned.

        Example:
            >>> Reliability.calibration_error(torch.tensor([[0.75], [0.5], [4.0]]))
            0.25
        """
        share = bins[2] / bins[2].sum().clamp(min=1)
        return float((share * (bins[1] - bins[0]).abs()).sum())


class ValuePairs(Metric):
    """All true and predicted values of a regression: float `[2, N]`."""

    full_state_update = False
    pairs: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("pairs", [], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, values: Tensor) -> None:
        """Add predictions `[B, 1]` and values `[B]`, NaN for one that does not count."""
        there = ~values.isnan()
        both = [values[there].float(), predicted.reshape(-1)[there].float()]
        self.pairs.append(torch.stack(both, -1).detach())

    def compute(self) -> Tensor:
        """Return the pairs of all batches and ranks."""
        pairs: Any = self.pairs
        rows = torch.cat(pairs) if isinstance(pairs, list) and pairs else pairs
        return rows.T if isinstance(rows, Tensor) else torch.zeros(2, 0)


def class_rows(names: Sequence[str], counts: Tensor) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and numbers of each class from counts of `Confusion`."""
    right = counts.diagonal()
    return label_rows(names, torch.stack([right, counts.sum(0), counts.sum(1)]))


def label_rows(names: Sequence[str], counts: Tensor) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and numbers of each class from counts of `LabelCounts`.

    Example:
        >>> rows = label_rows(["spam"], torch.tensor([[3], [4], [6]]))
        >>> rows[0]["precision"], rows[0]["recall"], round(rows[0]["f1"], 3), rows[0]["examples"]
        (0.75, 0.5, 0.6, 6)
    """
    rows = []
    for name, (right, said, true) in zip(names, counts.T.tolist(), strict=True):
        scores: Mapping[str, float] = {
            "precision": right / said if said else 0.0,
            "recall": right / true if true else 0.0,
            "f1": 2 * right / (said + true) if said + true else 0.0,
        }
        rows.append({"label": name, **scores, "examples": true, "predicted": said})
    return rows
