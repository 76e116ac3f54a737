"""Figures of a test: confusion of classes, bars of scores, reliability of probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bar_figure", "confusion_figure", "reliability_figure", "scatter_figure"]

# More classes than these are drawn without numbers in the cells, and without names.
_NUMBERED, _NAMED = 20, 60
# Inches; an image can have no more than 65,535 pixels a side.
_WIDEST = 60.0


def confusion_figure(matrix: ArrayLike, names: Sequence[str]) -> Figure:
    """Draw how often each class was taken for which.

    Args:
        matrix: `[C, C]`, counts, the true class as the row.
        names: of the classes.
    """
    counts = np.asarray(matrix, float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(14.0, 2.5 + 0.45 * len(names))
    figure, axes = _axes(side + 0.8, side)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class")
    if len(names) <= _NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= _NUMBERED:
        for row, column in np.ndindex(*counts.shape):
            if counts[row, column]:
                dark = shares[row, column] > 0.5
                axes.text(
                    column,
                    row,
                    f"{counts[row, column]:g}",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    fontsize=8,
                )
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


def bar_figure(values: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw scores in `[0, 1]` of several things side by side.

    Args:
        values: for each thing, such as a class, its scores by name; each has the same ones.
    """
    things = list(values)
    scores = list(next(iter(values.values()), {}))
    wide = max(4.0, 1.5 + 0.25 * len(things) * max(1, len(scores)))
    figure, axes = _axes(min(_WIDEST, wide), 4)
    width = 0.8 / max(1, len(scores))
    for number, score in enumerate(scores):
        places = np.arange(len(things)) + (number - (len(scores) - 1) / 2) * width
        axes.bar(places, [values[thing][score] for thing in things], width, label=score)
    if len(things) <= 3 * _NAMED:
        axes.set_xticks(range(len(things)), things, rotation=90 if len(things) > 6 else 0)
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    if scores:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(scores))
    return figure


def reliability_figure(
    confidence: ArrayLike, accuracy: ArrayLike, counts: ArrayLike, error: float
) -> Figure:
    """Draw how often a model is right when it says that it is sure (arXiv:1706.04599).

    Args:
        confidence: `[bins]`, mean probability of the predicted class in each bin.
        accuracy: `[bins]`, share of right predictions there.
        counts: `[bins]`, predictions there; an empty bin is left out.
        error: the expected calibration error, for the title.
    """
    sure, right, size = (np.asarray(x, float) for x in (confidence, accuracy, counts))
    there = size > 0
    figure, axes = _axes(4.5, 4.5)
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey", label="perfectly calibrated")
    axes.plot(sure[there], right[there], marker="o", label="the model")
    axes.bar(
        sure[there],
        size[there] / max(1.0, size.sum()),
        width=0.04,
        alpha=0.25,
        label="share of the predictions",
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.set_title(f"expected calibration error {error:.3f}")
    axes.legend(loc="upper left")
    return figure


def scatter_figure(true: ArrayLike, predicted: ArrayLike) -> Figure:
    """Draw predicted values against true ones.

    Args:
        true: `[N]`.
        predicted: `[N]`.
    """
    figure, axes = _axes(4.5, 4.5)
    first, second = np.asarray(true, float), np.asarray(predicted, float)
    axes.scatter(first, second, s=6, alpha=0.4)
    both = np.concatenate([first, second])
    if both.size:
        ends = [both.min(), both.max()]
        axes.plot(ends, ends, linestyle="--", color="grey")
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need the extra: pip install 'lmkit[plot]'") from error
    # Not by pyplot, which keeps every figure and may want a screen.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()
