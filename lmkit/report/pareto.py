"""Which models are worth their price: the ones that no other beats in both quality and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["pareto_figure", "pareto_front"]


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    r"""Say of each model whether no other costs no more and is worth no less, and one of it truly.

    $i$ is on the front if there is no $j$ with $c_j \le c_i$ and $v_j \ge v_i$ where one of them is
    strict. Of equal models all are on it, or none.

    Args:
        costs: the lower the better.
        values: the higher the better, as many.

    Example:
        >>> pareto_front([1.0, 2.0, 3.0], [0.8, 0.7, 0.9])
        [True, False, True]
    """
    cost, value = np.asarray(costs, float), np.asarray(values, float)
    no_dearer = cost[:, None] <= cost
    no_worse = value[:, None] >= value
    better = (cost[:, None] < cost) | (value[:, None] > value)
    beaten = no_dearer & no_worse & better
    return [not beaten[:, place].any() for place in range(len(cost))]


def pareto_figure(
    names: Sequence[str], costs: Mapping[str, Sequence[float]], values: Sequence[float], value: str
) -> Figure:
    """Draw quality against each cost; marks on the front are filled, and joined by a line.

    Args:
        names: of the models.
        costs: by what they are, one number for each model, the lower the better.
        values: one for each model, the higher the better.
        value: what the values are.

    Raises:
        ImportError: the extra `plot` is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need the extra: pip install 'lmkit[plot]'") from error
    # Not by pyplot, which keeps every figure and may want a screen.
    figure = Figure(figsize=(4.8 * len(costs), 4.2), layout="constrained")
    for number, (cost, prices) in enumerate(costs.items()):
        axes = figure.add_subplot(1, len(costs), number + 1)
        _draw(axes, names, list(prices), list(values))
        axes.set_xlabel(cost)
        axes.set_ylabel(value)
        axes.set_xlim(left=0, right=1.1 * max(prices))
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(names)))
    return figure


def _draw(axes: Any, names: Sequence[str], costs: list[float], values: list[float]) -> None:
    front = pareto_front(costs, values)
    best = sorted((c, v) for c, v, is_best in zip(costs, values, front, strict=True) if is_best)
    axes.plot([c for c, _ in best], [v for _, v in best], linestyle="--", color="grey", zorder=0)
    for number, (name, cost, height) in enumerate(zip(names, costs, values, strict=True)):
        # A filled mark is on the front.
        face = f"C{number}" if front[number] else "none"
        axes.scatter([cost], [height], s=60, edgecolor=f"C{number}", facecolor=face, label=name)
