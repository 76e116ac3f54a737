"""What carries out a plan, and goes on from a state."""

import multiprocessing

import pytest
import torch

from lmkit.datamodules.batch_plan import BatchPlan, BucketPlan
from lmkit.datamodules.loader import PlannedLoader, ResumableLoader


def collate(epoch, rows):
    return {"index": rows, "epoch": torch.full_like(rows, epoch)}


def rows_of(plan, epoch=0):
    return [plan.batch(epoch, position).tolist() for position in range(len(plan))]


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


PLANS = {
    "batch": lambda size: BatchPlan(10, size, seed=1),
    "bucket": lambda size: BucketPlan([(4, 8), (10, 16)], 16 * size, seed=1),
}


def make(stop=None, clock=None, batch_size=2, num_workers=0, plan="batch"):
    return ResumableLoader(PLANS[plan](batch_size), collate, num_workers, stop, clock)


def take(loader, count):
    iterator = iter(loader)
    return [
        (int(batch["epoch"][0]), batch["index"].tolist())
        for _, batch in zip(range(count), iterator, strict=False)
    ]


@pytest.mark.parametrize(
    ("position", "num_workers"), [*((n, 0) for n in range(1, 11)), (3, 2), (4, 2), (5, 2), (6, 2)]
)
@pytest.mark.parametrize("plan", PLANS)
def test_state_counts_what_was_handed_over(plan, position, num_workers):
    straight = make(plan=plan)
    epoch = len(straight)
    whole = [batch for _ in range(3) for batch in take(straight, epoch)]
    assert epoch < 6 and len(whole) == 3 * epoch
    first, second = (make(num_workers=num_workers, plan=plan) for _ in range(2))
    seen = []
    while len(seen) < position:
        seen += take(first, min(epoch, position - len(seen)))
    second.load_state_dict(first.state_dict())
    while len(seen) < len(whole):
        seen += take(second, len(whole) - len(seen))
    assert seen == whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_evaluation_is_the_same_each_time(num_workers):
    loader = PlannedLoader(PLANS["bucket"](2), collate, num_workers)
    first, second = ([batch["index"].tolist() for batch in loader] for _ in range(2))
    assert first == second == rows_of(loader.plan) and len(first) == len(loader)


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
    assert "2 rows (in buckets: tokens) per step over all ranks, this run has 3" in caplog.text


def test_a_bucketed_run_with_another_budget_goes_on_at_the_same_place(caplog):
    loader = make(plan="bucket")
    take(loader, 3)
    other = make(plan="bucket", batch_size=3)
    other.load_state_dict(loader.state_dict())
    assert other.state_dict() == {"epoch": 0, "position": 2, "global_batch": 48}
    assert "32 rows (in buckets: tokens) per step" in caplog.text
