"""Which rows are in which batch."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from lmkit.datamodules.batch_plan import BatchPlan, BucketPlan

CLASSES = [(13, 8), (40, 16), (41, 24), (41 + 64, 32), (110, 40)]
ROWS = 110


def batches(plan, epoch=0):
    return [plan.batch(epoch, position).tolist() for position in range(len(plan))]


def real(planned):
    return [row for batch in planned for row in batch if row >= 0]


def ranks(world_size, make, **options):
    return [make(rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def bucket(classes=CLASSES, budget=64, **options):
    return BucketPlan(classes, budget, **options)


def width(classes, batch):
    """Columns of a batch: as many as its widest row needs."""
    return next(wide for end, wide in classes if max(batch) < end)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 5, 12, 13])
def test_ranks_together_see_every_row_once_in_equally_many_batches(rows, world_size):
    plans = [BatchPlan(rows, 2, rank, world_size, seed=3) for rank in range(world_size)]
    assert len({len(plan) for plan in plans}) == 1
    seen = [row for plan in plans for row in real(batches(plan))]
    assert sorted(seen) == list(range(rows))
    assert all(len(batch) == 2 for plan in plans for batch in batches(plan))


def test_two_ranks_share_the_global_batches_of_one():
    one = batches(BatchPlan(13, 4, seed=3))
    two = [batches(BatchPlan(13, 2, rank, 2, seed=3)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*two, strict=True)] == [sorted(batch) for batch in one]


def test_epochs_have_different_orders_of_the_same_rows():
    plan = BatchPlan(50, 5, seed=3)
    first, second = real(batches(plan, 0)), real(batches(plan, 1))
    assert first != second and sorted(first) == sorted(second) == list(range(50))
    assert first == real(batches(plan, 0))
    assert first != real(batches(BatchPlan(50, 5, seed=4), 0))


def test_evaluation_keeps_the_order_of_the_text():
    assert real(batches(BatchPlan(7, 3))) == list(range(7))


@pytest.mark.parametrize("field", ["rows", "batch_size", "world_size"])
def test_a_plan_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        BatchPlan(**{"rows": 1, "batch_size": 1, field: 0})


@pytest.mark.parametrize(
    "plan",
    [BatchPlan(1000, 3, 1, 2, seed=3), bucket(seed=3, rank=1, world_size=2), bucket()],
    ids=["batch", "bucket", "in_order"],
)
def test_a_batch_can_be_had_without_those_before_it(plan):
    """More batches than are shuffled at once, in an order that jumps over them."""
    for epoch in (1, 0):
        straight = batches(plan, epoch)
        again = pickle.loads(pickle.dumps(plan))
        mixed = torch.randperm(len(plan)).tolist()
        assert {p: again.batch(epoch, p).tolist() for p in mixed} == dict(enumerate(straight))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 16, 64, 100, 5000])
@pytest.mark.parametrize("seed", [None, 3])
def test_every_bucketed_row_comes_once_an_epoch(world_size, budget, seed):
    plans = ranks(world_size, bucket, budget=budget, seed=seed)
    for epoch in range(2):
        planned = [batches(plan, epoch) for plan in plans]
        assert sorted(row for each in planned for row in real(each)) == list(range(ROWS))
        sizes = [[len(batch) for batch in each] for each in planned]
        assert all(each == sizes[0] for each in sizes)  # on each rank as many rows at a step


@pytest.mark.parametrize("budget", [16, 64, 100, 5000])
@pytest.mark.parametrize("seed", [None, 3])
def test_a_bucketed_batch_keeps_to_the_budget(budget, seed):
    plans = ranks(2, bucket, budget=budget, seed=seed)
    for batch in (batch for plan in plans for batch in batches(plan)):
        padded = [row if row >= 0 else 0 for row in batch]
        assert len(batch) * width(CLASSES, padded) <= budget or len(batch) == 1
    assert plans[0].global_batch == 2 * budget


def test_what_is_left_of_a_class_joins_the_next_wider_one():
    plan = bucket([(5, 8), (7, 16)], budget=16)
    assert batches(plan) == [[0, 1], [2, 3], [4], [5], [6]]
    assert batches(bucket([(1, 8), (2, 16)], budget=32)) == [[0, 1]]


def test_buckets_come_in_order_without_a_seed_and_mixed_with_one():
    widths = [width(CLASSES, batch) for batch in batches(bucket())]
    assert widths == sorted(widths)
    mixed = [width(CLASSES, batch) for batch in batches(bucket(seed=3))]
    assert mixed != sorted(mixed)


def test_epochs_of_buckets_differ_in_order_and_in_what_is_together():
    plan = bucket(seed=3)
    first, second = batches(plan, 0), batches(plan, 1)
    assert Counter(map(len, first)) == Counter(map(len, second))
    together = [{frozenset(batch) for batch in epoch} for epoch in (first, second)]
    assert len(together[0] & together[1]) < len(first) / 4
    assert [len(batch) for batch in first] != [len(batch) for batch in second]
    assert batches(bucket(seed=3), 0) == first != batches(bucket(seed=4), 0)


def test_in_a_class_rows_are_drawn_from_all_of_it():
    plan = bucket([(1000, 8)], budget=80, seed=3)
    spread = [max(batch) - min(batch) for batch in batches(plan)]
    assert np.median(spread) > 600


@pytest.fixture(scope="module")
def lengths():
    drawn = np.random.default_rng(0).lognormal(3.5, 0.7, 10_000).astype(int)
    return np.sort(drawn.clip(3, 128))


def classes_of(lengths):
    wide = -(-lengths // 8) * 8
    return [(int((wide <= width).sum()), int(width)) for width in np.unique(wide)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_buckets_hold_little_padding(lengths, world_size):
    classes = classes_of(lengths)
    plans = ranks(world_size, bucket, classes=classes, budget=16 * 128, seed=3)
    size = sum(len(batch) * width(classes, batch) for plan in plans for batch in batches(plan))
    shuffled = np.random.default_rng(1).permutation(lengths).reshape(-1, 16)
    random_share = 1 - lengths.sum() / (shuffled.max(1).sum() * 16)
    share = 1 - lengths.sum() / size
    assert share < 0.11 and share < random_share / 4


def test_ranks_hardly_ever_wait_for_a_wider_batch(lengths):
    """Only where what is left of one class fills a rank's batch, and the other's has wider rows."""
    classes = classes_of(lengths)
    plans = ranks(2, bucket, classes=classes, budget=16 * 128, seed=3)
    steps = [
        [width(classes, batch) for batch in step] for step in zip(*map(batches, plans), strict=True)
    ]
    assert sum(a != b for a, b in steps) <= len(steps) / 100


def test_buckets_have_few_shapes(lengths):
    classes = classes_of(lengths)
    planned = batches(bucket(classes, 16 * 128, seed=3))
    assert len({(len(batch), width(classes, batch)) for batch in planned}) <= len(classes) + 2


def test_a_plan_without_rows_has_no_batches():
    assert len(bucket([])) == 0
