"""AdaLoRA's ranks are dropped as its authors drop them, and the penalty is added to any loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lmkit.callbacks.rank_schedule import OrthogonalityPenalty, RankSchedule
from lmkit.surgery.lora import LoRA
from lmkit.surgery.lora_variants import Triplet, triplets
from lmkit.types import Batch, StepOutput
from tests.surgery.adapted import bert

pytest.importorskip("peft", reason="LoRA needs the extra peft")
SURGERY = LoRA(targets=["all"], variant="adalora", rank=2, initial_rank=4)


def begin(total: int = 20, **settings: Any) -> tuple[RankSchedule, list[Triplet]]:
    """Start a schedule on a small network whose weights are all something."""
    network = bert()
    SURGERY(network)
    schedule = RankSchedule(SURGERY, **settings)
    schedule.start(network, total)
    matrices = list(triplets(network, "default").values())
    generator = torch.Generator().manual_seed(0)
    for parameter in (p for matrix in matrices for p in matrix):
        parameter.data = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return schedule, matrices


def kept(matrices: list[Triplet]) -> int:
    return sum(int(matrix.values.count_nonzero()) for matrix in matrices)


def test_the_schedule_chooses_what_peft_chooses() -> None:
    from peft import AdaLoraConfig
    from peft.tuners.adalora.layer import RankAllocator

    ours, theirs = bert(), bert()
    for network in (ours, theirs):
        torch.manual_seed(3)
        SURGERY(network)
    schedule, total = RankSchedule(SURGERY, warmup=0.1, settling=0.25, interval=2), 20
    config = AdaLoraConfig(
        init_r=4, target_r=2, tinit=2, tfinal=5, deltaT=2, total_step=total, beta1=0.85, beta2=0.85
    )
    allocator = RankAllocator(theirs, config, "default")
    schedule.start(ours, total)
    pattern: Any = None
    generator = torch.Generator().manual_seed(1)
    for step in range(1, total + 1):
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        for one, other in ((a, b) for a, b in pairs if a.requires_grad):
            noise, grad = (torch.randn(one.shape, generator=generator) for _ in range(2))
            for parameter in (one, other):
                parameter.data.add_(noise)
                parameter.grad = grad.clone()
        schedule.observe(1.0)
        schedule.act(step)
        # At T - t_f peft has to be told to choose for the last time.
        if step <= total - 5:
            last = step == total - 5
            _, found = allocator.update_and_allocate(theirs, step, force_mask=last)
            pattern = found or pattern
        else:
            allocator.mask_using_rank_pattern(theirs, pattern)
        first, second = (triplets(network, "default") for network in (ours, theirs))
        for layer in first:
            assert torch.equal(first[layer].values, second[layer].values), (step, layer)
    assert kept(list(first.values())) == 2 * len(first)


def test_ranks_are_chosen_at_the_interval_and_learn_on_between() -> None:
    schedule, matrices = begin(warmup=0.2, settling=0.3, interval=3)
    found = {}
    for step in range(1, 21):
        for matrix in matrices:
            matrix.values.data.add_(0.1)
        schedule.observe(1.0)
        found[step] = schedule.act(step)
        if found[step] is None:
            assert kept(matrices) == 4 * len(matrices)
        else:
            assert kept(matrices) == found[step]
    assert [step for step in found if found[step] is not None] == [6, 9, 12, *range(14, 21)]
    assert found[14] == found[20] == 2 * len(matrices)


def test_the_ranks_of_the_settling_are_fixed() -> None:
    schedule, matrices = begin(settling=0.5)
    chosen = set()
    for step in range(10, 21):
        for parameter in (p for matrix in matrices for p in matrix):
            parameter.data = torch.randn(parameter.shape)
            parameter.grad = torch.randn(parameter.shape)
        schedule.observe(1.0)
        schedule.act(step)
        chosen.add(tuple(tuple(m.values.flatten().ne(0).tolist()) for m in matrices))
    assert len(chosen) == 1


def test_nothing_is_done_where_no_step_was_observed() -> None:
    schedule, matrices = begin(interval=1, warmup=0.0)
    assert schedule.act(5) is None and kept(matrices) == 4 * len(matrices)
    schedule.observe(1.0)
    assert schedule.act(5) is not None
    assert schedule.act(6) is None


def test_the_importance_is_that_before_the_step_and_in_the_final_unit() -> None:
    schedule, matrices = begin(beta1=0.0, beta2=0.0)
    first = [p.detach().clone() for matrix in matrices for p in matrix]
    schedule.observe(torch.tensor(0.25))
    for parameter in (p for matrix in matrices for p in matrix):
        parameter.data.zero_()
    schedule.act(1)
    grads = [p.grad for matrix in matrices for p in matrix if p.grad is not None]
    expected = np.concatenate(
        [np.abs(0.25 * w.numpy() * g.numpy()).ravel() for w, g in zip(first, grads, strict=True)]
    )
    assert np.allclose(schedule.state_dict()["sensitivity"], expected, atol=1e-7)


def test_a_skipped_step_leaves_the_averages_finite() -> None:
    schedule, matrices = begin()
    schedule.observe(1.0)
    schedule.act(1)
    before = schedule.state_dict()["sensitivity"]
    for matrix in matrices:
        assert matrix.left.grad is not None
        matrix.left.grad[0, 0] = torch.inf
        matrix.right.grad = None
    schedule.observe(1.0)
    schedule.act(2)
    state = schedule.state_dict()
    assert all(tensor.isfinite().all() for tensor in state.values())
    # Where the gradient was no number the mean is as it was.
    size = matrices[0].left.shape[1]
    assert state["sensitivity"][0] == before[0] and state["sensitivity"][size] != before[size]


def test_a_state_goes_on_where_it_was_and_is_taken_up_once() -> None:
    schedule, _ = begin()
    schedule.observe(1.0)
    schedule.act(1)
    state = schedule.state_dict()
    other, _ = begin()
    other.load_state_dict(state)
    network = bert()
    SURGERY(network)
    other.start(network, 20)
    assert all(torch.equal(state[key], value) for key, value in other.state_dict().items())
    other.start(network, 20)
    assert not any(value.any() for value in other.state_dict().values())


def test_a_state_of_other_matrices_is_refused() -> None:
    schedule, _ = begin()
    schedule.load_state_dict({key: torch.zeros(3) for key in ("sensitivity", "uncertainty")})
    network = bert()
    SURGERY(network)
    with pytest.raises(ValueError, match=r"is of 3 weights, and the adapter 'default' has \d+"):
        schedule.start(network, 10)


@pytest.mark.parametrize("items", [0.0, 0.5, 3.0])
def test_the_penalty_is_added_to_a_mean_over_items_if_there_are_any(items: float) -> None:
    network = bert()
    SURGERY(network)
    gaps = []
    for left, _, right in triplets(network, "default").values():
        p, q = left.detach().numpy(), right.detach().numpy()
        gaps += [np.linalg.norm(p.T @ p - np.eye(4)), np.linalg.norm(q @ q.T - np.eye(4))]

    def objective(batch: Batch) -> StepOutput:
        return StepOutput(torch.tensor(1.5), torch.tensor(items), logs={"own": torch.ones(())})

    penalty = OrthogonalityPenalty(network, "default", 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        output = penalty(objective, {})
    expected = 1.5 + (0.3 * float(np.mean(gaps)) if items else 0.0)
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)
    assert set(output.logs) == {"own", "lora/orthogonality"} and output.items == items
    output.loss.backward()
    for left, values, right in triplets(network, "default").values():
        assert left.grad is not None and right.grad is not None and values.grad is None
        assert left.grad.any() == right.grad.any() == bool(items)
