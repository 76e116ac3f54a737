import multiprocessing

import pytest
import torch

from lmkit.datamodules.loader import BatchPlan, PlannedLoader, ResumableLoader


def collate(epoch, rows):
    return {"index": rows, "epoch": torch.full_like(rows, epoch)}


def rows_of(plan, epoch=0):
    return [plan.batch(epoch, position).tolist() for position in range(len(plan))]


def real(batches):
    return [row for batch in batches for row in batch if row >= 0]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 5, 12, 13])
def test_ranks_together_see_every_row_once_in_equally_many_batches(rows, world_size):
    plans = [BatchPlan(rows, 2, rank, world_size, seed=3) for rank in range(world_size)]
    assert len({len(plan) for plan in plans}) == 1
    seen = [row for plan in plans for row in real(rows_of(plan))]
    assert sorted(seen) == list(range(rows))
    assert all(len(batch) == 2 for plan in plans for batch in rows_of(plan))


def test_two_ranks_share_the_global_batches_of_one():
    one = rows_of(BatchPlan(13, 4, seed=3))
    two = [rows_of(BatchPlan(13, 2, rank, 2, seed=3)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*two, strict=True)] == [sorted(batch) for batch in one]


def test_epochs_have_different_orders_of_the_same_rows():
    plan = BatchPlan(50, 5, seed=3)
    first, second = real(rows_of(plan, 0)), real(rows_of(plan, 1))
    assert first != second and sorted(first) == sorted(second) == list(range(50))
    assert first == real(rows_of(plan, 0))
    assert first != real(rows_of(BatchPlan(50, 5, seed=4), 0))


def test_evaluation_keeps_the_order_of_the_text():
    assert real(rows_of(BatchPlan(7, 3))) == list(range(7))


@pytest.mark.parametrize("field", ["rows", "batch_size", "world_size"])
def test_a_plan_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        BatchPlan(**{"rows": 1, "batch_size": 1, field: 0})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_global_generator_is_left_alone(num_workers):
    before = torch.get_rng_state()
    loader = PlannedLoader(BatchPlan(9, 2), collate, num_workers)
    assert [batch["index"].tolist() for batch in loader] == rows_of(loader.plan)
    assert torch.equal(before, torch.get_rng_state())


def test_workers_end_when_an_iteration_is_dropped():
    iterator = iter(PlannedLoader(BatchPlan(50, 2), collate, num_workers=2))
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    del iterator
    for child in multiprocessing.active_children():
        child.join(timeout=5)
    assert not multiprocessing.active_children()


def test_negative_workers_are_refused():
    with pytest.raises(ValueError, match="num_workers must be 0 or more, got -1"):
        PlannedLoader(BatchPlan(1, 1), collate, -1)


def make(stop=None, clock=None, batch_size=2, num_workers=0):
    return ResumableLoader(BatchPlan(10, batch_size, seed=1), collate, num_workers, stop, clock)


def take(loader, count):
    iterator = iter(loader)
    return [
        (int(batch["epoch"][0]), batch["index"].tolist())
        for _, batch in zip(range(count), iterator, strict=False)
    ]


@pytest.mark.parametrize(
    ("position", "num_workers"), [*((n, 0) for n in range(1, 12)), (3, 2), (5, 2), (6, 2)]
)
def test_state_counts_what_was_handed_over(position, num_workers):
    straight = make()
    whole = [batch for _ in range(3) for batch in take(straight, 5)]
    first, second = make(num_workers=num_workers), make(num_workers=num_workers)
    seen = []
    while len(seen) < position:
        seen += take(first, min(5, position - len(seen)))
    second.load_state_dict(first.state_dict())
    while len(seen) < len(whole):
        seen += take(second, len(whole) - len(seen))
    assert seen == whole


def test_iterating_without_taking_a_batch_changes_nothing():
    loader = make()
    assert loader.state_dict() == {"epoch": 0, "position": 0, "global_batch": 2}
    iter(loader)
    assert loader.state_dict()["position"] == 0
    first = take(loader, 5)
    iter(loader)
    assert loader.state_dict() == {"epoch": 0, "position": 5, "global_batch": 2}
    assert {epoch for epoch, _ in first} == {0}
    assert {epoch for epoch, _ in take(loader, 5)} == {1}


def test_a_shortened_epoch_is_an_epoch():
    loader = make(stop=3)
    assert [len(take(loader, 9)) for _ in range(2)] == [3, 3]
    assert loader.state_dict() == {"epoch": 1, "position": 3, "global_batch": 2}
    resumed = make(stop=3)
    resumed.load_state_dict(loader.state_dict())
    assert {epoch for epoch, _ in take(resumed, 9)} == {2}


def test_a_clock_tells_the_epoch():
    epoch = 4
    loader = make(clock=lambda: epoch)
    assert {seen for seen, _ in take(loader, 5)} == {4}
    # A learning-rate finder runs some batches, then turns the clock back.
    take(loader, 2)
    epoch = 0
    assert {seen for seen, _ in take(loader, 5)} == {0}


def test_another_batch_size_goes_on_at_the_same_place(caplog):
    loader = make()
    take(loader, 3)
    other = make(batch_size=3)
    other.load_state_dict(loader.state_dict())
    assert other.state_dict() == {"epoch": 0, "position": 2, "global_batch": 3}
    assert "2 rows per step over all ranks, this run has 3" in caplog.text
