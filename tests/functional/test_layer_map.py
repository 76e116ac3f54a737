"""Which layers of a student learn from, or begin as, which layers of its teacher."""

from itertools import combinations, combinations_with_replacement

import pytest
import torch

from lmkit.functional.layer_map import layer_pairs, monotone_match, spread_layers


def test_uniform_map_of_six_layers_takes_every_second_of_twelve():
    assert layer_pairs(6, 12, "uniform") == [(i, 2 * i) for i in range(7)]


@pytest.mark.parametrize("layers", [1, 2, 5, 12])
def test_uniform_map_of_equal_depths_is_the_identity(layers):
    assert layer_pairs(layers, layers, "uniform") == [(i, i) for i in range(layers + 1)]


@pytest.mark.parametrize("student", range(1, 13))
@pytest.mark.parametrize("teacher", [1, 4, 7, 12, 24])
def test_uniform_map_is_monotone_nearest_and_matches_both_ends(student, teacher):
    pairs = layer_pairs(student, teacher, "uniform")
    assert pairs[0] == (0, 0) and pairs[-1] == (student, teacher)
    assert [s for s, _ in pairs] == list(range(student + 1))
    found = [t for _, t in pairs]
    assert found == sorted(found)
    if student <= teacher:
        assert len(set(found)) == len(found)
    assert all(abs(t - s * teacher / student) <= 0.5 for s, t in pairs)


def test_a_half_goes_up_in_every_layer():
    # Python's own rounding would send 1.5 and 4.5 to the even 2 and 4.
    assert layer_pairs(4, 6, "uniform") == [(0, 0), (1, 2), (2, 3), (3, 5), (4, 6)]


def test_last_map_matches_the_last_layers_alone():
    assert layer_pairs(3, 12, "last") == [(3, 12)]


def test_skip_map_is_that_of_patient_distillation():
    assert layer_pairs(6, 12, "skip") == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]
    assert layer_pairs(4, 4, "skip") == [(1, 1), (2, 2), (3, 3)]


def test_explicit_pairs_may_count_from_the_end():
    assert layer_pairs(3, 12, [[0, 0], (1, -6), [-1, -1]]) == [(0, 0), (1, 7), (3, 12)]
    assert layer_pairs(3, 12, [[-4, -13]]) == [(0, 0)]


@pytest.mark.parametrize("pair", [[4, 1], [1, 13], [-5, 1], [1, -14]])
def test_a_layer_that_is_not_there_is_an_error_that_names_pair_and_layers(pair):
    says = rf"pair \[{pair[0]}, {pair[1]}\], but the student has 3 layers and the teacher 12"
    with pytest.raises(ValueError, match=says):
        layer_pairs(3, 12, [[0, 0], pair])


@pytest.mark.parametrize("pairs", [[3], [[1, 2, 3]], ["12"], [[1, 2.0]], [[True, 1]]])
def test_what_is_no_pair_of_whole_numbers_is_an_error(pairs):
    with pytest.raises(TypeError, match="pairs of whole numbers"):
        layer_pairs(3, 12, pairs)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            (3, 12, "dynamic"),
            "must be one of uniform, last, skip, or a list of pairs; got 'dynamic'",
        ),
        ((3, 12, []), "no pair"),
        ((0, 12, "last"), "student_layers must be at least 1"),
        ((3, 0, "last"), "teacher_layers must be at least 1"),
        ((1, 12, "skip"), "at least 2 layers"),
        ((6, 4, "skip"), "at least as many, got 6 and 4"),
    ],
)
def test_a_map_that_makes_no_sense_is_an_error(arguments, says):
    with pytest.raises(ValueError, match=says):
        layer_pairs(*arguments)


def brute_force(costs):
    """The first of the cheapest matches, all of them tried in lexicographic order."""
    teachers, students = costs.shape
    choose = combinations if students >= teachers else combinations_with_replacement
    return min(
        choose(range(students), teachers),
        key=lambda match: sum(costs[t, s].item() for t, s in enumerate(match)),
    )


@pytest.mark.parametrize("teachers", [1, 2, 4])
@pytest.mark.parametrize("students", [1, 2, 3, 4, 7])
def test_match_is_the_cheapest_of_all_in_order(teachers, students):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        # Whole numbers, so that there are ties and no rounding.
        costs = torch.randint(0, 6, (teachers, students), generator=generator).float()
        assert tuple(monotone_match(costs)) == brute_force(costs)


def test_match_is_better_than_taking_the_cheapest_from_the_last_layer_down():
    costs = torch.tensor([[5.0, 1.0, 2.0], [5.0, 0.0, 1.0]])
    # From the last layer down: 1 for the second, then 0 for the first, at a cost of 5.
    assert monotone_match(costs) == [1, 2]


def test_match_of_a_clear_diagonal_is_the_identity():
    assert monotone_match(1 - torch.eye(4)) == [0, 1, 2, 3]


def test_layers_of_infinite_cost_are_left_out():
    costs = torch.ones(2, 5)
    costs[:, [0, 2, 4]] = torch.inf
    assert monotone_match(costs) == [1, 3]
    costs[:, 3] = torch.inf
    assert monotone_match(costs) == [1, 1]


def test_match_asks_for_no_gradient_and_takes_half_precision():
    costs = (1 - torch.eye(3)).bfloat16().requires_grad_()
    assert monotone_match(costs) == [0, 1, 2]


@pytest.mark.parametrize(
    ("costs", "says"),
    [
        (torch.zeros(3), r"costs must have the shape .* got \[3\]"),
        (torch.zeros(0, 3), r"got \[0, 3\]"),
        (torch.tensor([[0.0, torch.nan]]), "NaN"),
        (torch.tensor([[0.0, -torch.inf]]), "minus infinity"),
        (torch.full((2, 2), torch.inf), "forbid every match of 2 teacher layers"),
    ],
)
def test_costs_that_allow_no_match_are_an_error(costs, says):
    with pytest.raises(ValueError, match=says):
        monotone_match(costs)


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (3, 6, [0, 2, 5]),
        (6, 12, [0, 2, 4, 7, 9, 11]),
        (2, 12, [0, 11]),
        (4, 12, [0, 4, 7, 11]),
        (1, 6, [0]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_layers_are_spread_with_both_ends(count, total, expected):
    assert spread_layers(count, total) == expected


@pytest.mark.parametrize("total", [2, 6, 12, 24])
def test_spread_layers_are_distinct_in_order_and_nearest_to_even(total):
    for count in range(2, total + 1):
        found = spread_layers(count, total)
        assert found[0] == 0 and found[-1] == total - 1
        assert found == sorted(set(found)) and len(found) == count
        even = [i * (total - 1) / (count - 1) for i in range(count)]
        assert all(abs(a - b) <= 0.5 + 1e-12 for a, b in zip(found, even, strict=True))


@pytest.mark.parametrize("count", [0, 7])
def test_a_student_of_more_layers_than_its_teacher_is_an_error(count):
    with pytest.raises(ValueError, match=rf"count must lie in \[1, 6\].* got {count}"):
        spread_layers(count, 6)
