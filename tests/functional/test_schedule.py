"""Learning-rate schedules."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from lmkit.functional import schedule_factor, warmup_steps


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_schedule_equals_that_of_transformers(schedule: str, reference: object) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = reference(optimizer, 7, 40)  # type: ignore[operator]
    for step in range(45):
        expected = scheduler.lr_lambdas[0](step)
        if step <= 40:  # after its end their cosine goes up again
            assert schedule_factor(step, 40, 7, schedule) == pytest.approx(expected, abs=1e-12)


def test_schedule_stays_at_its_last_value_after_the_end() -> None:
    assert schedule_factor(50, 40, 7, "linear") == 0
    assert schedule_factor(50, 40, 7, "cosine") == pytest.approx(0)
    assert schedule_factor(50, 40, 7, "constant") == 1


def test_warmup_is_a_number_or_a_share() -> None:
    assert [warmup_steps(w, 200) for w in (0, 0.0, 10, 0.1, 1.0)] == [0, 0, 10, 20, 1]


@pytest.mark.parametrize("warmup", [-1, -0.5, 1.5])
def test_warmup_outside_its_range_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match="warmup"):
        warmup_steps(warmup, 100)


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="linear, cosine, constant"):
        schedule_factor(0, 10, 1, "exponential")
