"""Bins for texts."""

import numpy as np
import pytest
import torch

from lmkit.functional.packing import pack_lengths, segment_bounds


def first_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """How many bins the textbook's loop over all bins needs."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = next((i for i, space in enumerate(spaces) if space >= length), None)
        if fitting is None:
            spaces.append(capacity - length)
        else:
            spaces[fitting] -= length
    return len(spaces)


def draw(seed: int, count: int, low: int, high: int) -> list[int]:
    drawn = np.random.default_rng(seed).integers(low, high, count, endpoint=True)
    return [int(length) for length in drawn]


CASES = {
    "mixed": (draw(0, 300, 3, 128), 128),
    "halves": (draw(1, 200, 50, 70), 128),
    "thirds": (draw(2, 200, 30, 50), 128),
    "small": (draw(3, 400, 1, 9), 64),
    "ones": ([1] * 100, 7),
    "full": ([8] * 20, 8),
    "wide": (draw(4, 300, 100, 1000), 1000),
    "one": ([5], 5),
}


@pytest.mark.parametrize("case", CASES)
def test_every_item_is_in_one_bin_and_no_bin_is_over_full(case):
    lengths, capacity = CASES[case]
    bins = pack_lengths(lengths, capacity)
    assert sorted(item for chosen in bins for item in chosen) == list(range(len(lengths)))
    assert all(0 < sum(lengths[item] for item in chosen) <= capacity for chosen in bins)


@pytest.mark.parametrize("case", CASES)
def test_no_more_bins_than_first_fit_decreasing(case):
    lengths, capacity = CASES[case]
    assert len(pack_lengths(lengths, capacity)) <= first_fit_decreasing(lengths, capacity)


def test_no_two_bins_could_be_one():
    lengths, capacity = CASES["mixed"]
    loads = sorted(sum(lengths[i] for i in chosen) for chosen in pack_lengths(lengths, capacity))
    assert loads[0] + loads[1] > capacity


def test_an_item_goes_where_it_leaves_the_least_space():
    # The 3 fits beside the 6 too, but fills up the bin of the 7.
    assert pack_lengths([6, 7, 3], capacity=10) == [[1, 2], [0]]
    assert pack_lengths([6, 8, 2, 4], capacity=10) == [[1, 2], [0, 3]]


def test_bins_of_mixed_lengths_are_full():
    lengths = draw(0, 5000, 3, 128)
    bins = pack_lengths(lengths, 128)
    assert sum(lengths) / (128 * len(bins)) >= 0.98


def test_equal_lengths_keep_their_order():
    assert pack_lengths([2] * 5, capacity=4) == [[0, 1], [2, 3], [4]]


def test_nothing_needs_no_bin():
    assert pack_lengths([], capacity=4) == []


@pytest.mark.parametrize(("lengths", "range_"), [([3, 0], "0 to 3"), ([3, 9], "3 to 9")])
def test_an_item_that_fits_no_bin_is_refused(lengths, range_):
    with pytest.raises(ValueError, match=rf"lengths must lie in \[1, 8\], got .* from {range_}"):
        pack_lengths(lengths, capacity=8)


def test_bounds_stand_at_every_change_and_row() -> None:
    segments = torch.tensor([[1, 2, 2, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    assert segment_bounds(segments).tolist() == [0, 1, 3, 4, 8, 9, 12]
