"""Which task each batch is of: windows, rules and what goes with what."""

import numpy as np
import pytest
import torch

from lmkit.datamodules.task_sampling import TaskSchedule, check_sampling
from lmkit.functional.task_sampling import task_probabilities

SIZES = (400.0, 100.0, 16.0)


@pytest.mark.parametrize(
    ("sampling", "more", "expected"),
    [
        ("temperature", {"temperature": 2.0}, task_probabilities(SIZES, 2.0)),
        ("temperature", {"temperature": 3.0, "cap": 50}, task_probabilities(SIZES, 3.0, 50)),
        ("proportional", {"temperature": 5.0}, task_probabilities(SIZES)),
        ("uniform", {}, task_probabilities([1, 1, 1])),
        ("weights", {}, task_probabilities(SIZES)),
    ],
)
def test_each_rule_draws_by_its_probabilities(sampling, more, expected):
    schedule = TaskSchedule(sampling, SIZES, 20_000, seed=5, **more)
    torch.testing.assert_close(schedule.probabilities(0), expected, rtol=1e-12, atol=0)
    counts = np.bincount(schedule.tasks(0), minlength=3)
    shares = expected.numpy()
    spread = np.sqrt(20_000 * shares * (1 - shares))
    assert (np.abs(counts - 20_000 * shares) < 4 * spread).all(), counts


def test_annealing_becomes_more_even_from_epoch_to_epoch():
    schedule = TaskSchedule("annealed", SIZES, 10, epochs=4)
    torch.testing.assert_close(schedule.probabilities(0), task_probabilities(SIZES))
    torch.testing.assert_close(schedule.probabilities(3), task_probabilities(SIZES, 5.0))
    largest = [float(schedule.probabilities(epoch)[0]) for epoch in range(4)]
    assert largest == sorted(largest, reverse=True)


def test_turns_go_on_over_epochs():
    schedule = TaskSchedule("round_robin", SIZES, 4)
    joined = np.concatenate([schedule.tasks(epoch) for epoch in range(3)])
    assert joined.tolist() == [n % 3 for n in range(12)]


@pytest.mark.parametrize("sampling", ["temperature", "round_robin"])
def test_a_window_is_of_one_task_and_steps_are_the_same_whatever_its_length(sampling):
    plain = TaskSchedule(sampling, SIZES, 30, seed=5)
    windows = TaskSchedule(sampling, SIZES, 90, seed=5, accumulate=3)
    for epoch in (1, 0, 1):
        assert np.array_equal(windows.tasks(epoch).reshape(-1, 3)[:, 0], plain.tasks(epoch))
        assert (windows.tasks(epoch).reshape(-1, 3).std(1) == 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampling": "sometimes"}, "sampling must be one of temperature"),
        ({"batches": "both"}, "batches must be 'one' or 'all'"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"batches": "all", "sampling": "uniform"}, "nothing is drawn"),
        ({"batches": "all", "cap": 5}, "nothing is drawn"),
        ({"cap": 0}, "cap is a size"),
        ({"cap": 5, "sampling": "uniform"}, "cap is a size"),
        ({"sampling": "weights"}, "needs them"),
        ({"weights": {"a": 1.0, "b": 1.0}}, "needs them"),
        (
            {"sampling": "weights", "weights": {"a": 1.0, "c": 1.0}},
            "has 'c', and the tasks are a, b",
        ),
        ({"sampling": "weights", "weights": {"a": 1.0}}, "above 0 for each of a, b"),
        ({"sampling": "weights", "weights": {"a": 1.0, "b": 0.0}}, "above 0 for each of a, b"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(change, words):
    usual = {"sampling": "temperature", "temperature": 2.0, "cap": None, "weights": None}
    with pytest.raises(ValueError, match=words):
        check_sampling(**{**usual, "batches": "one", **change}, names=["a", "b"])
