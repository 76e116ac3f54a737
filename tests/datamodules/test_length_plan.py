"""Batches of about one length: each example once, over epochs, ranks and classes."""

import pickle
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from lmkit.datamodules.length_plan import LengthPlan

DRAW = np.random.default_rng(0)
LENGTHS = DRAW.integers(3, 200, 1003)


def rows(plan, epoch=0):
    return [plan.batch(epoch, position).tolist() for position in range(len(plan))]


def flat(batches):
    return [row for batch in batches for row in batch if row >= 0]


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize(("count", "size"), [(1003, 8), (16, 8), (5, 8), (1, 1), (7, 1)])
def test_each_example_comes_once_over_all_ranks(count, size, world, seed):
    plans = [LengthPlan(LENGTHS[:count], size, rank, world, seed) for rank in range(world)]
    seen = [flat(rows(plan, epoch=2)) for plan in plans]
    assert sorted(chain(*seen)) == list(range(count))
    assert len({len(plan) for plan in plans}) == 1
    assert all(len(batch) == size for plan in plans for batch in rows(plan))


@pytest.mark.parametrize("seed", [0, None])
def test_fillers_stand_in_one_batch_at_most(seed):
    batches = rows(LengthPlan(LENGTHS[:1001], 8, seed=seed))
    short = [batch for batch in batches if -1 in batch]
    assert len(short) == 1 and short[0].count(-1) == 7
    assert not any(-1 in batch for batch in rows(LengthPlan(LENGTHS[:1000], 8, seed=seed)))


def test_the_ranks_share_the_batches_of_one_process():
    one = LengthPlan(LENGTHS, 8, seed=3)
    two = [LengthPlan(LENGTHS, 4, rank, 2, seed=3) for rank in range(2)]
    for position in range(len(one)):
        parts = [plan.batch(1, position).tolist() for plan in two]
        assert sorted(parts[0] + parts[1]) == sorted(one.batch(1, position).tolist())


def test_a_batch_is_a_pure_function_of_seed_and_epoch():
    plan = LengthPlan(LENGTHS, 8, seed=3)
    first = rows(plan, 0)
    other = pickle.loads(pickle.dumps(plan))
    assert rows(plan, 1) != first
    assert [plan.batch(0, p).tolist() for p in (90, 3, 90)] == [first[90], first[3], first[90]]
    assert rows(other, 0) == first
    assert rows(LengthPlan(LENGTHS, 8, seed=4), 0) != first
    companions = [set(map(frozenset, rows(plan, epoch))) for epoch in (0, 1)]
    assert len(companions[0] & companions[1]) < 3


def test_a_batch_may_be_written_to():
    plan = LengthPlan(LENGTHS, 8, seed=3)
    kept = plan.batch(0, 0).clone()
    plan.batch(0, 0).fill_(-5)
    assert torch.equal(plan.batch(0, 0), kept) and kept.dtype == torch.int64


def test_there_is_little_padding_in_training():
    batches = rows(LengthPlan(LENGTHS, 8, seed=0))
    padded = sum(8 * max(LENGTHS[row] for row in batch if row >= 0) for batch in batches)
    assert padded / LENGTHS.sum() < 1.1
    order = DRAW.permutation(1003)
    plain = sum(8 * LENGTHS[order[first : first + 8]].max() for first in range(0, 1003, 8))
    assert plain / LENGTHS.sum() > 1.5


def test_the_longest_do_not_always_come_first_in_training():
    widths = [
        max(LENGTHS[row] for row in batch if row >= 0)
        for batch in rows(LengthPlan(LENGTHS, 8, seed=0))
    ]
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.3


def test_evaluation_begins_with_the_longest():
    order = flat(rows(LengthPlan(LENGTHS, 8)))
    assert (np.diff(LENGTHS[order]) <= 0).all()
    assert rows(LengthPlan(LENGTHS, 8), 0) == rows(LengthPlan(LENGTHS, 8), 5)
    assert rows(LengthPlan(np.full(6, 4), 3)) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("world", [1, 2])
def test_classes_come_as_often_as_each_other(world):
    classes = np.repeat([4, 7, 9], [900, 100, 3])
    plans = [LengthPlan(LENGTHS, 8, rank, world, 1, classes) for rank in range(world)]
    seen = flat(chain(*map(rows, plans)))
    counts = Counter(classes[seen].tolist())
    assert sum(counts.values()) == 1003 and max(counts.values()) - min(counts.values()) <= 1
    for kind in (4, 7, 9):
        each = Counter(row for row in seen if classes[row] == kind)
        assert max(each.values()) - (min(each.values()) if kind != 4 else 1) <= 1
    assert set(flat(rows(plans[0], 0))) != set(flat(rows(plans[0], 1)))


def test_a_large_class_is_seen_whole_over_the_epochs():
    classes = np.repeat([0, 1], [30, 6])
    plan = LengthPlan(LENGTHS[:36], 4, seed=1, classes=classes)
    seen = Counter(row for epoch in range(20) for row in flat(rows(plan, epoch)))
    assert len(seen) == 36 and min(seen[row] for row in range(30)) > 4


def test_classes_of_one_example_each_make_an_epoch_too():
    plan = LengthPlan(LENGTHS[:5], 2, seed=1, classes=np.arange(5))
    assert sorted(flat(rows(plan))) == list(range(5))
    assert sorted(flat(rows(LengthPlan(LENGTHS[:5], 2, seed=1, classes=np.zeros(5, int))))) == list(
        range(5)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LENGTHS[:0], 8), "examples must be at least 1"),
        ((LENGTHS, 0), "batch_size must be at least 1, got 0"),
        ((LENGTHS, 8, 0, 0), "world_size must be at least 1"),
    ],
)
def test_sizes_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LengthPlan(*arguments)
