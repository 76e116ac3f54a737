"""The front holds what nothing beats."""

from __future__ import annotations

import random

import pytest

from lmkit.report.pareto import pareto_figure, pareto_front


def beaten(costs: list[float], values: list[float], i: int) -> bool:
    """By the words of the definition, one by one."""
    for j in range(len(costs)):
        no_dearer, no_worse = costs[j] <= costs[i], values[j] >= values[i]
        if no_dearer and no_worse and (costs[j] < costs[i] or values[j] > values[i]):
            return True
    return False


def test_against_a_loop_over_all_pairs() -> None:
    draw = random.Random(3)
    for _ in range(50):
        count = draw.randint(1, 9)
        costs = [float(draw.randint(1, 5)) for _ in range(count)]
        values = [float(draw.randint(1, 5)) for _ in range(count)]
        expected = [not beaten(costs, values, i) for i in range(count)]
        assert pareto_front(costs, values) == expected
        assert any(expected)


def test_only_the_order_counts() -> None:
    costs, values = [3.0, 1.0, 2.0, 9.0], [0.5, 0.1, 0.7, 0.9]
    front = pareto_front(costs, values)
    assert front == [False, True, True, True]
    assert pareto_front([c**3 for c in costs], [10 * v - 4 for v in values]) == front
    assert pareto_front(costs[::-1], values[::-1]) == front[::-1]


def test_equal_models_are_on_it_together_and_one_alone_is() -> None:
    assert pareto_front([1.0, 1.0], [2.0, 2.0]) == [True, True]
    assert pareto_front([5.0], [0.0]) == [True]
    assert pareto_front([1.0, 1.0], [2.0, 3.0]) == [False, True]


def test_the_figure_has_a_panel_for_each_cost_and_fills_the_marks_on_the_front() -> None:
    pytest.importorskip("matplotlib")
    names, costs = ["dense", "small", "bad"], {"ms": [9.0, 3.0, 9.5], "MiB": [9.0, 4.0, 9.0]}
    figure = pareto_figure(names, costs, [0.9, 0.8, 0.7], "accuracy")
    first, second = figure.axes
    assert (first.get_xlabel(), second.get_xlabel()) == ("ms", "MiB")
    assert first.get_ylabel() == "accuracy"
    filled = [len(dots.get_facecolor()) > 0 for dots in first.collections]
    assert filled == [True, True, False]
    (line,) = first.lines
    assert list(line.get_xdata()) == [3.0, 9.0] and list(line.get_ydata()) == [0.8, 0.9]
