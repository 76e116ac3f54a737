"""Arguments outside their range are refused, and a run's steps follow from its length."""

from __future__ import annotations

from typing import Any

import pytest

from lmkit.callbacks.pruning_plan import PruningPlan, Timetable


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give the sparsity that is to be reached"),
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, r"sparsity must lie in \[0, 1\), got -0.1"),
        ({"sparsity": float("nan")}, "sparsity must be a finite number"),
        ({"sparsity": True}, "sparsity must be a finite number"),
        ({"pattern": "4:2"}, "pattern must be 'N:M' with 0 < N < M"),
        ({"pattern": "half"}, "pattern must be 'N:M'"),
        ({"pattern": "2:4", "sparsity": 0.6}, "has a sparsity of 0.5, and sparsity is 0.6"),
        ({"sparsity": 0.5, "criterion": "size"}, "criterion must be one of magnitude, random"),
        ({"sparsity": 0.5, "scope": "layer"}, "scope must be one of row, local, global"),
        ({"sparsity": 0.5, "schedule": "slow"}, "schedule must be one of one_shot, linear"),
        ({"sparsity": 0.5, "start": 0.7}, "with 0 <= start < end <= 1, got 0.7 and 0.7"),
        ({"sparsity": 0.5, "start": -0.1}, "0 <= start < end"),
        ({"sparsity": 0.5, "end": 1.1}, "0 <= start < end <= 1"),
        ({"sparsity": 0.5, "schedule": "one_shot", "start": 1.0}, "0 <= start < end"),
        ({"sparsity": 0.5, "interval": 0}, "interval must be at least 1"),
        ({"sparsity": 0.5, "interval": 0.5}, "interval must be a whole number"),
        ({"sparsity": 0.5, "calibration_steps": 0}, "calibration_steps must be at least 1"),
        ({"sparsity": 0.5, "seed": -1}, "seed must be at least 0"),
        ({"sparsity": 0.5, "score_rate": 0.0}, "score_rate must be over 0"),
        ({"sparsity": 0.5, "penalty": -1.0}, "penalty at least 0"),
        ({"sparsity": 0.5, "penalty": float("inf")}, "penalty must be a finite number"),
    ],
)
def test_an_argument_outside_its_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningPlan(**settings)


@pytest.mark.parametrize(
    ("settings", "scope"),
    [
        ({"criterion": "magnitude"}, "local"),
        ({"criterion": "movement"}, "local"),
        ({"criterion": "soft_movement"}, "global"),
        ({"criterion": "wanda"}, "row"),
        ({"criterion": "wanda", "scope": "global"}, "global"),
    ],
)
def test_a_criterion_has_the_scope_of_its_paper(settings: dict[str, Any], scope: str) -> None:
    assert PruningPlan(0.5, **settings).compared == scope


def test_a_pattern_says_the_sparsity() -> None:
    assert PruningPlan(pattern="2:4").target == PruningPlan(0.5, pattern="2:4").target == 0.5
    assert PruningPlan(pattern="1:8").target == 0.875 and PruningPlan(0.0).target == 0.0


@pytest.mark.parametrize(
    ("settings", "total", "expected"),
    [
        ({"start": 0.2, "end": 0.8}, 50, (10, 40)),
        ({"start": 0.0, "end": 1.0}, 7, (0, 7)),
        ({"start": 0.1, "end": 0.2}, 1, (0, 1)),
        ({"start": 0.5, "end": 0.6}, 2, (1, 2)),
        ({"start": 0.3, "end": 0.1, "schedule": "one_shot"}, 10, (3, 3)),
        ({"start": 0.0, "schedule": "one_shot"}, None, (0, 0)),
    ],
)
def test_shares_of_a_run_become_steps(
    settings: dict[str, Any], total: int | None, expected: tuple[int, int]
) -> None:
    assert PruningPlan(0.5, **settings).steps(total) == Timetable(*expected, 10)


@pytest.mark.parametrize("settings", [{}, {"schedule": "one_shot"}])
def test_a_run_without_an_end_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs to know how long the run is; set max_steps"):
        PruningPlan(0.5, **settings).steps(None)
