"""Probabilities against their formula, draws against their probabilities, names against rules."""

import math

import numpy as np
import pytest
import torch

from lmkit.functional.task_sampling import (
    about_task,
    annealed_temperature,
    check_task_names,
    draw_tasks,
    take_turns,
    task_probabilities,
)

SIZES = [400, 100, 16]


def reference(sizes, temperature=1.0, cap=None):
    counted = np.array([n if cap is None else min(n, cap) for n in sizes], float)
    powers = counted ** (1.0 / temperature)
    return powers / powers.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("cap", [None, 50, 1000])
def test_probabilities_are_those_of_the_formula(temperature, cap):
    found = task_probabilities(SIZES, temperature, cap)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), reference(SIZES, temperature, cap), rtol=1e-12)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [0.7752, 0.1938, 0.0310]),
        (2.0, [0.5882, 0.2941, 0.1176]),
        (math.inf, [1 / 3, 1 / 3, 1 / 3]),
        (1e9, [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_a_high_temperature_is_even_and_1_is_proportional(temperature, expected):
    np.testing.assert_allclose(task_probabilities(SIZES, temperature).numpy(), expected, atol=5e-5)


def test_a_cap_leaves_the_ratios_of_smaller_tasks():
    free, capped = task_probabilities(SIZES), task_probabilities(SIZES, cap=150)
    assert float(capped[1] / capped[2]) == pytest.approx(float(free[1] / free[2]), rel=1e-12)
    assert float(capped[0] / capped[1]) == pytest.approx(1.5, rel=1e-12)


def test_the_unit_of_sizes_does_not_matter_and_large_ones_do_not_overflow():
    small = task_probabilities(SIZES, 0.01)
    large = task_probabilities([n * 1e12 for n in SIZES], 0.01)
    torch.testing.assert_close(small, large, rtol=1e-9, atol=0)
    assert float(small.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([],), "sizes must be"),
        (([3, 0],), "sizes must be"),
        ((SIZES, 0.0), "temperature must be above 0"),
        ((SIZES, math.nan), "temperature must be above 0"),
        ((SIZES, 1.0, 0), "cap must be above 0"),
    ],
)
def test_numbers_outside_their_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        task_probabilities(*arguments)


@pytest.mark.parametrize("epochs", [2, 5, 25])
def test_annealing_goes_from_proportional_to_an_exponent_of_a_fifth(epochs):
    for number in range(1, epochs + 1):  # as the paper counts
        alpha = 1 - 0.8 * (number - 1) / (epochs - 1)
        assert 1 / annealed_temperature(number - 1, epochs) == pytest.approx(alpha, rel=1e-12)
    assert annealed_temperature(0, epochs) == 1.0
    assert annealed_temperature(epochs + 3, epochs) == annealed_temperature(epochs - 1, epochs)


def test_a_run_of_one_epoch_is_not_annealed():
    assert annealed_temperature(0, 1) == 1.0
    with pytest.raises(ValueError, match="epochs 1"):
        annealed_temperature(0, 0)


def test_tasks_come_as_often_as_they_are_probable():
    steps, probabilities = 20_000, task_probabilities(SIZES, 2.0)
    counts = torch.bincount(draw_tasks(probabilities, steps, 7, 0), minlength=3)
    spread = (steps * probabilities * (1 - probabilities)).sqrt()
    assert bool(((counts - steps * probabilities).abs() < 4 * spread).all()), counts


def test_neighbouring_draws_are_independent():
    drawn = draw_tasks(task_probabilities([1, 1]), 20_000, 7, 0)
    same = float((drawn[1:] == drawn[:-1]).double().mean())
    assert abs(same - 0.5) < 4 * 0.5 / math.sqrt(20_000)


def test_a_draw_is_a_function_of_seed_and_epoch_alone():
    probabilities = task_probabilities(SIZES)
    first = draw_tasks(probabilities, 50, 7, 3)
    torch.manual_seed(99)
    assert torch.equal(draw_tasks(probabilities, 80, 7, 3)[:50], first)
    assert not torch.equal(draw_tasks(probabilities, 50, 7, 4), first)
    assert not torch.equal(draw_tasks(probabilities, 50, 8, 3), first)


def test_a_sum_that_is_rounded_below_1_draws_no_task_that_is_not_there():
    short = torch.tensor([0.25, 0.25], dtype=torch.float64)
    assert draw_tasks(short, 500, 1, 0).max() == 1


@pytest.mark.parametrize("first", [0, 5])
def test_turns_are_even_and_go_on(first):
    turns = take_turns(3, 10, first)
    assert torch.equal(turns, take_turns(3, 10 + first)[first:])
    counts = torch.bincount(turns, minlength=3)
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "at least one task"),
        (["a.b"], "letters, digits"),
        (["a/b"], "letters, digits"),
        ([""], "letters, digits"),
        ([3], "letters, digits"),
        (["ner", "topic", "NER"], "'ner' and 'NER' differ only by case"),
        (["items"], "cannot be called 'items'"),
        (["training"], "cannot be called 'training'"),
    ],
)
def test_names_that_would_be_mistaken_are_refused(names, words):
    with pytest.raises(ValueError, match=words):
        check_task_names(names)


def test_an_error_names_its_task_and_others_pass():
    check_task_names(["ner", "topic-2", "qa_v2"])
    with pytest.raises(ValueError, match="task 'ner': no rows"), about_task("ner"):
        raise ValueError("no rows")
    with pytest.raises(TypeError, match=r"^no rows"), about_task("ner"):
        raise TypeError("no rows")
