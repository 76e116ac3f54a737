"""Masks are chosen when a plan says so, to a share of all weights, and only more of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lmkit.callbacks.pruning_plan import PruningPlan
from lmkit.callbacks.pruning_run import PruningRun


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(4)
    return {"a": nn.Linear(8, 10, bias=False), "b": nn.Linear(10, 12, bias=False)}


def begin(total: int = 20, **settings: Any) -> PruningRun:
    run = PruningRun(PruningPlan(**{"sparsity": 0.8, "start": 0.0, "end": 0.5, **settings}))
    run.start(layers(), total)
    return run


def course(run: PruningRun, steps: range) -> list[float]:
    found = []
    for step in steps:
        run.step_done(step)
        found.append(run.masks.sparsity)
    return found


def test_the_sparsity_follows_the_schedule_and_is_one_of_all_weights() -> None:
    found = course(begin(interval=2), range(1, 16))
    expected = [0.8 * (1 - (1 - min(step // 2 * 2, 10) / 10) ** 3) for step in range(1, 16)]
    assert found == pytest.approx(expected, abs=0.5 / 80)
    assert found[-1] == pytest.approx(0.8, abs=1e-12)


def test_one_shot_prunes_once_and_to_the_target() -> None:
    run = begin(schedule="one_shot", start=0.25)
    assert course(run, range(1, 8)) == [0.0] * 4 + [0.8] * 3 and run.is_finished
    run = begin(schedule="one_shot")
    assert run.choose(0) and run.masks.sparsity == 0.8 and not run.choose(0)


def test_a_step_that_was_left_out_is_made_up_for() -> None:
    run = begin(interval=5)
    assert run.step_done(4) is False and run.step_done(7) is True
    assert run.updated == 5 and run.masks.sparsity == pytest.approx(0.7, abs=0.5 / 80)
    run.step_done(19)
    assert run.is_finished and run.masks.sparsity == pytest.approx(0.8)


def test_a_run_that_is_made_longer_keeps_what_is_pruned() -> None:
    for criterion in ("magnitude", "movement"):
        run = begin(interval=1, criterion=criterion)
        for step in range(1, 9):
            for layer in run.masks.weights.values():
                layer.weight.grad = torch.randn_like(layer.weight)
            run.observe(1.0, {id(each.weight) for each in run.masks.weights.values()})
            run.step_done(step)
        level, state = run.masks.level, run.state_dict()
        longer = PruningRun(run.plan)
        longer.load_state_dict(state)
        longer.start(layers(), 200)
        assert longer.updated == 8
        for step in range(9, 101):
            longer.step_done(step)
            assert longer.masks.level >= level
        assert longer.masks.level == 0.8 and longer.is_finished


def test_masks_that_are_final_stay_if_the_run_is_made_longer() -> None:
    run = begin(criterion="movement", interval=1)
    for step in range(1, 11):
        for layer in run.masks.weights.values():
            layer.weight.grad = torch.randn_like(layer.weight)
        run.observe(1.0, {id(each.weight) for each in run.masks.weights.values()})
        run.step_done(step)
    assert run.is_finished and not run.masks.scores
    longer = PruningRun(run.plan)
    longer.load_state_dict(run.state_dict())
    longer.start(layers(), 100)
    assert not any(longer.step_done(step) for step in range(11, 60))
    for name, mask in run.masks.pruned.items():
        assert torch.equal(mask, longer.masks.pruned[name])


def test_it_goes_on_from_the_share_of_zeros_that_there_is() -> None:
    first = layers()
    for layer in first.values():
        with torch.no_grad():
            layer.weight.view(-1)[::2] = 0.0
    run = PruningRun(PruningPlan(0.9, start=0.0, end=1.0, schedule="linear", interval=1))
    run.start(first, 4)
    assert run.masks.initial == 0.5
    assert course(run, range(1, 5)) == pytest.approx([0.6, 0.7, 0.8, 0.9], abs=0.5 / 80)


def test_a_pattern_holds_in_every_group_in_the_end() -> None:
    run = PruningRun(PruningPlan(pattern="1:2", start=0.0, end=0.5, interval=1))
    run.start(layers(), 10)
    assert course(run, range(1, 6)) == pytest.approx([0.244, 0.392, 0.468, 0.496, 0.5], abs=0.005)
    for each in run.masks.weights.values():
        groups = each.weight.view(len(each.weight), -1, 2)
        assert ((groups == 0).sum(-1) == 1).all()


def test_inputs_are_read_in_the_steps_before_a_choice_alone() -> None:
    run = begin(criterion="wanda", start=0.2, interval=4, calibration_steps=2)
    seen = []
    for step in range(14):
        run.read({}, step)
        seen.append(run.inputs._masks is not None)
        run.inputs.end()
        for name, each in run.masks.weights.items():
            run.inputs._squares[name] += torch.ones(each.weight.shape[1])
        run.step_done(step + 1)
    # Chosen after the steps 4, 8 and 10.
    assert [step for step, was in enumerate(seen) if was] == [2, 3, 6, 7, 8, 9]


def test_without_anything_seen_there_is_no_choice() -> None:
    run = begin(criterion="wanda", schedule="one_shot", start=0.1)
    with pytest.raises(ValueError, match="'wanda' has seen no inputs of a"):
        run.step_done(2)
    with pytest.raises(ValueError, match="'movement' has seen no step"):
        begin(criterion="movement", schedule="one_shot").choose(0)


def test_frozen_weights_have_no_movement() -> None:
    run, found = begin(criterion="soft_movement"), layers()
    run.check_trained(found, {id(layer.weight) for layer in found.values()})
    with pytest.raises(ValueError, match="'soft_movement' needs gradients, and b is frozen"):
        run.check_trained(found, {id(found["a"].weight)})
    begin().check_trained(found, set())


def test_the_summary_says_how_much_and_when() -> None:
    assert begin().summary == "80.0% of 200 weights in 2 matrices become zero by step 10"
