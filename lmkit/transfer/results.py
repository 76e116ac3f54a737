"""What a comparison of encoders holds, and how it is shown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from ..report.results import as_text

__all__ = ["METRICS", "TransferReport", "TransferRow", "score_of"]

#: What is said of the predictions of each task.
METRICS = {
    "single_label": "accuracy",
    "multi_label": "micro_f1",
    "regression": "r2",
    "tagging": "accuracy",
}


@dataclass(frozen=True)
class TransferRow:
    """How much one encoder knows of a task.

    Attributes:
        name: of the model.
        log_evidence: LogME, in nats an example.
        score: of the ridge regression, each example left out: see `METRICS`.
        baseline: the score of saying the same of each example.
        penalty: of the ridge regression, in shares of the mean squared singular value.
        items: examples, or words of tagging.
        width: of the features.
    """

    name: str
    log_evidence: float
    score: float
    baseline: float
    penalty: float
    items: int
    width: int


@dataclass(frozen=True)
class TransferReport:
    """Encoders by how much they know of a task.

    Attributes:
        rows: one for each model, the greatest `log_evidence` first.
        metric: name of the score.
        settings: of the comparison: task, examples, pooling, seed.
    """

    rows: list[TransferRow]
    metric: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, rows: Sequence[TransferRow], settings: Mapping[str, Any]) -> TransferReport:
        """Sort rows, the best first; those that are alike stay in their order."""
        best_first = sorted(rows, key=lambda row: -row.log_evidence)
        return cls(best_first, METRICS[settings["task"]], settings)

    def __str__(self) -> str:
        return as_text(self.table())

    def __rich__(self) -> Table:
        return self.table()

    def table(self) -> Table:
        """Return a table for a terminal: a line for each model."""
        table = Table(
            title="which encoder to begin from",
            caption="LogME: log evidence of a linear model on frozen features, in nats an example; "
            f"{self.metric}: of a ridge regression, each example left out",
            caption_justify="left",
        )
        table.add_column("model", overflow="fold")
        for word in ("LogME", self.metric, "same for all", "examples", "width"):
            table.add_column(word, justify="right")
        for row in self.rows:
            table.add_row(
                row.name,
                f"{row.log_evidence:.4f}",
                f"{row.score:.4f}",
                f"{row.baseline:.4f}",
                f"{row.items:,}",
                f"{row.width:,}",
            )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        rows = [asdict(row) for row in self.rows]
        return {"metric": self.metric, "rows": rows, "settings": dict(self.settings)}

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as JSON, and return where."""
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return place


def score_of(predictions: Tensor, targets: Tensor, task: str) -> tuple[float, float]:
    r"""Return how good predictions are, and how good the same one for each example is.

    Accuracy of the class with the greatest prediction; of several labels micro F1 of those above
    one half; of values $R^2 = 1 - \sum (y - \hat y)^2 / \sum (y - \bar y)^2$.

    Args:
        predictions: float `[N, C]`.
        targets: float `[N, C]`, of classes zeros and ones.
        task: a key of `METRICS`.

    Example:
        >>> import torch
        >>> classes = torch.eye(2)[[0, 1, 1, 1]]
        >>> score_of(torch.eye(2)[[0, 1, 0, 1]], classes, "single_label")
        (0.75, 0.75)
    """
    if task == "regression":
        spread = (targets - targets.mean(0)).square().sum()
        return float(1 - (targets - predictions).square().sum() / spread), 0.0
    if task == "multi_label":
        return _micro_f1(predictions > 0.5, targets), _micro_f1(
            (targets.mean(0) > 0.5).expand_as(targets), targets
        )
    right = predictions.argmax(1) == targets.argmax(1)
    return float(right.double().mean()), float(targets.double().mean(0).max())


def _micro_f1(said: Tensor, targets: Tensor) -> float:
    both = float((said & (targets > 0.5)).sum())
    return 2 * both / max(1.0, float(said.sum() + targets.sum()))
