"""Arguments are checked before a fit begins, each with what was expected and what came."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmkit.callbacks.pruning_plan import Timetable
from lmkit.callbacks.structured_plan import StructuredPlan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of: counts .* parameters, speedup; got none"),
        ({"ffn": 8, "parameters": 0.5}, r"got ffn=8, parameters=0.5"),
        ({"parameters": 0.5, "speedup": 2.0}, "got parameters=0.5, speedup=2.0"),
        ({"ffn": 0}, "ffn must be at least 1, got 0"),
        ({"ffn": 1.0}, r"a whole number\), or a share of them in \(0, 1\), got 1.0"),
        ({"heads": 0.0}, "heads must be a number of heads"),
        ({"heads": -0.5}, "heads must be a number of heads"),
        ({"heads": True}, "heads must be a finite number, got True"),
        ({"ffn": "many"}, "ffn must be a finite number, got 'many'"),
        ({"ffn": 100}, "ffn=100 is no multiple of multiple_of=8: give ffn=96"),
        ({"ffn": 3}, "give ffn=8"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"layers": [2, 1]}, r"increasing order, got \[2, 1\]"),
        ({"layers": [1, 1]}, "increasing order"),
        ({"layers": []}, r"got \[\]"),
        ({"layers": [-1]}, "layers must be at least 0, got -1"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"hidden": 0.5}, "hidden must be a whole number"),
        ({"parameters": 1.0}, r"parameters must lie in \(0, 1\), got 1.0"),
        ({"parameters": float("nan")}, "parameters must be a finite number"),
        ({"speedup": 1.0}, "speedup must be over 1, got 1.0"),
        ({"ffn": 8, "importance": "size"}, "importance must be one of taylor, .* got 'size'"),
        ({"ffn": 8, "allocation": "here"}, "allocation must be one of local, global"),
        ({"ffn": 8, "start": 0.5, "end": 0.4}, "0 <= start <= end <= 1 .* got 0.5 and 0.4"),
        ({"ffn": 8, "start": 1.0, "end": 1.0}, "start < 1"),
        ({"ffn": 8, "end": 1.1}, "0 <= start <= end <= 1"),
        ({"ffn": 8, "interval": 0}, "interval must be at least 1"),
        ({"ffn": 8, "multiple_of": 0}, "multiple_of must be at least 1"),
        ({"ffn": 8, "calibration_batches": 0}, "calibration_batches must be at least 1"),
        ({"ffn": 8, "speed_batch": 0}, "speed_batch must be at least 1"),
        ({"ffn": 8, "speed_length": 1.5}, "speed_length must be a whole number"),
        ({"ffn": 8, "gate_rate": 0.0}, "gate_rate must be over 0"),
        ({"ffn": 8, "multiplier_rate": -1.0}, "multiplier_rate at least 0, got 0.1 and -1.0"),
        ({"ffn": 8, "seed": -1}, "seed must be at least 0"),
        ({"layers": 2, "importance": "learned"}, "has gates on heads and neurons alone"),
        ({"speedup": 2.0, "importance": "learned"}, "has gates on heads and neurons alone"),
        ({"ffn": 8, "importance": "learned", "start": 0, "end": 0}, "needs steps to learn in"),
    ],
)
def test_what_lies_outside_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StructuredPlan(**arguments)


def test_a_run_is_divided_by_shares_of_its_steps() -> None:
    plan = StructuredPlan(ffn=8, start=0.1, end=0.5, interval=3)
    assert plan.steps(100) == Timetable(10, 50, 3)
    assert StructuredPlan(ffn=8, start=0.5, end=0.5).steps(9) == Timetable(4, 4, 10)
    assert StructuredPlan(ffn=8, start=0.0, end=1.0).steps(9) == Timetable(0, 9, 10)
    with pytest.raises(ValueError, match=r"need to know how long the run is; set max_steps"):
        plan.steps(None)
    at_once = StructuredPlan(ffn=8, start=0, end=0)
    assert at_once.is_at_once and at_once.steps(None) == Timetable(0, 0, 10)


def test_all_is_done_at_the_end_and_nothing_at_the_start() -> None:
    plan, table = StructuredPlan(heads=2), Timetable(10, 50, 1)
    done = [plan.done(step, table) for step in (9, 10, 20, 30, 50, 60)]
    assert done == pytest.approx([0, 0, 1 - 0.75**3, 1 - 0.5**3, 1, 1], abs=1e-12)
    learned = StructuredPlan(heads=2, importance="learned")
    assert learned.done(20, table) == pytest.approx(0.25)
    assert plan.done(4, Timetable(4, 4, 1)) == 1.0 and plan.done(3, Timetable(4, 4, 1)) == 0.0


def test_the_kinds_are_those_of_the_targets() -> None:
    assert StructuredPlan(ffn=0.5).kinds == ["ffn"]
    assert StructuredPlan(ffn=8, heads=0.5).kinds == ["heads", "ffn"]
    assert StructuredPlan(layers=[0, 2]).kinds == []
    assert StructuredPlan(parameters=0.5).kinds == ["heads", "ffn"]


def test_arguments_are_plain_data() -> None:
    plan = StructuredPlan(layers=(0, 2), heads=3)  # type: ignore[arg-type]
    known = json.loads(json.dumps(plan.arguments))
    assert known == plan.arguments and known["layers"] == [0, 2]
