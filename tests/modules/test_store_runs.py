"""What is kept of a batch: runs however they are given, and numbers in the range of their type."""

import numpy as np
import pytest
import torch

from lmkit.modules.store_runs import Runs, as_array, runs_of, to_float16, token_runs

REAL = np.array([True, True, False, True])
ROWS = [np.arange(6.0).reshape(2, 3), np.zeros((0, 3)), np.full((4, 3), 9.0), np.ones((1, 3))]
KEPT = np.concatenate([ROWS[0], ROWS[3]])


@pytest.mark.parametrize("of", [np.asarray, torch.as_tensor])
def test_runs_are_the_same_however_they_are_given(of):
    laid = Runs(of(np.concatenate(ROWS)), of(np.array([2, 0, 4, 1])))
    for given in (laid, [of(rows) for rows in ROWS], Runs(laid.values, [2, 0, 4, 1])):
        values, counts = runs_of("hidden", given, REAL, None)
        assert np.array_equal(values, KEPT) and counts.tolist() == [2, 0, 1]
    values, counts = runs_of("hidden", of(np.arange(24.0).reshape(4, 2, 3)), REAL, None)
    assert counts.tolist() == [2, 2, 2] and values[:, 0].tolist() == [0, 3, 6, 9, 18, 21]
    assert runs_of("none", of(np.zeros((0, 2, 3))), REAL[:0], None)[0].shape == (0, 3)
    values, counts = runs_of("score", of(np.arange(4)), REAL, None)
    assert counts.tolist() == [1, 1, 1] and values.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Runs(np.zeros((7, 3)), [2, 0, 4]), r"hidden must have counts of 4 examples"),
        (Runs(np.zeros((7, 3)), [2, 0, 4, 2]), r"7 rows together, got \[2, 0, 4, 2\]"),
        (Runs(np.zeros((7, 3)), [8, -1, -1, 1]), r"got \[8, -1, -1, 1\]"),
        (ROWS[:3], r"counts of 4 examples, 6 rows together, got \[2, 0, 4\]"),
        ([*ROWS[:3], np.ones((1, 2))], r"rows of one shape for 4 examples, got \[\(2,\), \(3,\)\]"),
        ([], r"rows of one shape for 4 examples, got \[\]"),
    ],
)
def test_runs_that_do_not_fit_the_examples_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        runs_of("hidden", given, REAL, None)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_clipped_and_keeps_what_cannot_be(kind):
    inf = float("inf")
    values = torch.tensor([0.1, -3.0, 1e5, -1e5, 7e4, inf, -inf, float("nan")]).to(kind)
    made = to_float16(values)
    assert made.dtype == torch.float16
    # Of float16 itself a number beyond its range is infinite before anybody can clip it.
    low = -inf if kind == torch.float16 else -65504.0
    assert made[2:7].tolist() == [65504.0, low, 65504.0, 65504.0, -inf] and made[7].isnan()
    assert made[:2].tolist() == values[:2].half().tolist()


def test_every_number_of_float16_is_kept_as_it_is():
    every = torch.from_numpy(np.arange(2**16, dtype=np.uint16).view(np.float16))
    every = every[every != float("inf")]
    made = to_float16(every.float())
    assert torch.equal(
        made.view(torch.int16)[~every.isnan()], every.view(torch.int16)[~every.isnan()]
    )
    assert made.isnan().equal(every.isnan())


def test_numbers_become_those_of_the_type_that_is_asked_for():
    half = np.dtype(np.float16)
    for values in (
        [1e6, 0.1],
        np.array([1e6, 0.1]),
        torch.tensor([1e6, 0.1]),
        np.float32([1e6, 0.1]),
    ):
        assert as_array(values, half).tolist() == [65504.0, float(np.float16(0.1))]
    assert as_array(np.array([3, -4]), half).tolist() == [3.0, -4.0]
    assert as_array(torch.tensor([1.5], dtype=torch.bfloat16)).dtype == np.float32
    assert as_array(torch.tensor([1.5], requires_grad=True)).tolist() == [1.5]
    assert as_array(torch.tensor([3, 65535]), np.dtype(np.uint16)).dtype == np.uint16
    assert as_array(np.array([1, 258], ">i4")).tobytes() == np.array([1, 258], np.int32).tobytes()
    frozen = np.array([[1e6, 2.0]])[:, ::-1]
    frozen.setflags(write=False)
    assert as_array(frozen, half).tolist() == [[2.0, 65504.0]] and frozen[0, 1] == 1e6


def test_integers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="numbers from 3 to 65536 do not fit uint16"):
        as_array(torch.tensor([3, 65536]), np.dtype(np.uint16))
    with pytest.raises(ValueError, match="do not fit int32"):
        as_array(np.array([0.5]), np.dtype(np.int32))


def test_the_tokens_of_a_batch_are_those_of_its_rows_or_of_its_segments():
    values = torch.arange(36.0).reshape(3, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    rows = {"attention_mask": mask, "index": torch.tensor([4, -1, 2])}
    numbers, runs = token_runs(values, rows)
    assert numbers.tolist() == [4, -1, 2] and runs.counts.tolist() == [3, 1, 4]
    assert torch.equal(runs.values, torch.cat([values[0, :3], values[1, :1], values[2]]))
    segments = torch.tensor([[1, 2, 2, 0], [0, 0, 0, 0], [1, 1, 2, 3]])
    examples = torch.tensor([[4, 9, -1], [-1, -1, -1], [2, 0, 1]])
    shared = rows | {"segment_ids": segments, "segment_index": examples}
    numbers, runs = token_runs(values, shared)
    assert numbers.tolist() == [4, 9, 2, 0, 1] and runs.counts.tolist() == [1, 2, 2, 1, 1]
    assert torch.equal(runs.values, torch.cat([values[0, :3], values[2]]))
