"""What logits of a classification say, in names; and how much each class counts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional.classification import balanced_weights

__all__ = ["class_weights", "read_classes"]


def read_classes(
    logits: Tensor, labels: Sequence[str], task: str, threshold: float
) -> list[dict[str, Any]]:
    """Return the prediction of each row as plain data.

    Args:
        logits: `[B, C]`.
        labels: names of the classes.
        task: `"single_label"`, `"multi_label"` or `"regression"`.
        threshold: from which probability on one of several labels is predicted.

    Example:
        >>> read_classes(torch.tensor([[0.0, 30.0]]), ["no", "yes"], "single_label", 0.5)
        [{'label': 'yes', 'score': 1.0, 'probabilities': {'no': 0.0, 'yes': 1.0}}]
    """
    scores = logits.float()
    if task == "regression":
        return [{"value": value} for value in scores[:, 0].tolist()]
    shares = (scores.sigmoid() if task == "multi_label" else scores.softmax(-1)).tolist()
    rows: list[dict[str, Any]] = []
    for row in shares:
        by_name = {name: round(p, 6) for name, p in zip(labels, row, strict=True)}
        if task == "multi_label":
            chosen = [name for name, p in zip(labels, row, strict=True) if p >= threshold]
            rows.append({"labels": chosen, "probabilities": by_name})
        else:
            # Of the probabilities as they are: rounded, two of them may be one.
            best = labels[row.index(max(row))]
            rows.append({"label": best, "score": by_name[best], "probabilities": by_name})
    return rows


def class_weights(setting: Any, labels: Sequence[str], counts: Sequence[int]) -> Tensor | None:
    """Return how much an example of each class counts, `[C]`, or `None` if all do alike.

    Args:
        setting: `None`, `"balanced"`, a list in the order of the classes, or a dictionary by name.
        labels: names of the classes.
        counts: how many training examples each has.

    Raises:
        ValueError: a class is unknown, their number is wrong, or a weight is negative.

    Example:
        >>> class_weights({"spam": 3.0}, ["ham", "spam"], [5, 1])
        tensor([1., 3.])
    """
    if setting is None:
        return None
    if setting == "balanced":
        if not any(counts):
            raise ValueError(
                "class_weights='balanced' needs a data module that counts the labels of the "
                "training examples; give the weights as a list, or by name"
            )
        return balanced_weights(torch.tensor(list(counts)))
    known = ", ".join(map(repr, labels))
    if isinstance(setting, dict):
        for name in setting:
            if name not in labels:
                near = difflib.get_close_matches(name, labels, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"class_weights: unknown class {name!r} (there are {known}){hint}")
        setting = [setting.get(name, 1.0) for name in labels]
    if isinstance(setting, str) or len(setting) != len(labels):
        raise ValueError(
            f"class_weights must be 'balanced', a dictionary by name, or one weight for each of "
            f"{known}; got {setting!r}"
        )
    weights = torch.tensor([float(weight) for weight in setting])
    if not weights.isfinite().all() or (weights < 0).any() or not weights.any():
        raise ValueError(f"class_weights must be at least 0, and one above, got {setting!r}")
    return weights
