"""A course goes from its first choice to its last, by what was measured or calibrated."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from lmkit.callbacks.structured_plan import StructuredPlan
from lmkit.callbacks.structured_run import StructuredRun
from tests.surgery.pruned import build, inputs, said, scores


def alone(tensor: Tensor) -> Tensor:
    return tensor


def started(total: int = 12, **how: Any) -> tuple[Any, StructuredRun]:
    settings: dict[str, Any] = {"ffn": 8, "start": 0.0, "end": 1.0, "interval": 4}
    network: Any = build("bert", torch.float32)
    run = StructuredRun(StructuredPlan(**{**settings, **how}))
    run.look(network)
    run.start(total)
    return network, run


def step(network: Any, run: StructuredRun, number: int, choose: bool = True) -> bool:
    """Go through optimizer step `number`, from 1, as a fit does."""
    owned = {id(p) for p in network.parameters()}
    run.begin_batch(inputs(network), number - 1)
    network.zero_grad()
    scores(network).sin().sum().backward()
    run.end_batch()
    run.observe(1.0, 1.0, owned, number - 1, alone)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.sub_(parameter.grad, alpha=1e-3)
    run.step_done()
    return run.choose(number, alone) if choose else False


@pytest.mark.parametrize("importance", ["taylor", "activation", "magnitude", "random"])
def test_it_chooses_at_its_times_and_is_due_at_the_last(importance: str) -> None:
    network, run = started(importance=importance)
    assert not run.choose(0, alone) and run.updated == 0 and run.kept() == {}
    changed = [number for number in range(1, 13) if step(network, run, number)]
    assert changed == [4, 8, 12] and run.is_due
    kept = run.kept()
    assert {len(indices) for indices in kept.values()} == {8} and len(kept) == 3
    assert not run.choose(12, alone) and not run.choose(13, alone)
    run.finish()
    assert run.is_over and not run.is_due and not run.choose(14, alone)
    assert not network.get_submodule(next(iter(kept)))._forward_pre_hooks


def test_a_step_moves_nothing_of_what_is_shut() -> None:
    network, run = started(importance="magnitude", interval=1)
    for number in range(1, 7):
        step(network, run, number)
    shut = {name: mask.clone() for name, mask in run.masks.masked.items()}
    step(network, run, 7, choose=False)
    for name, mask in shut.items():
        weight = network.get_submodule(name).weight
        assert mask.any() and not weight[:, mask].any()
        assert not weight.grad[:, mask].any() and weight.grad[:, ~mask].any()


def test_without_a_step_it_calibrates_and_without_either_it_says_so() -> None:
    _, run = started(start=0.5, end=0.5)
    wanted = {each.name: torch.arange(each.count).float() for each in run.units}
    assert run.choose(6, alone, lambda: wanted)
    assert all(indices == list(range(16, 24)) for indices in run.kept().values())
    _, run = started(start=0.5, end=0.5)
    with pytest.raises(ValueError, match="nothing to choose the units of"):
        run.choose(6, alone)


def test_what_steps_have_said_comes_before_calibration() -> None:
    network, run = started(start=0.5, end=0.5)
    for number in range(1, 7):
        step(network, run, number, choose=False)
    assert run.choose(6, alone, None) and run.is_due


def test_learned_gates_have_the_second_half_to_settle() -> None:
    network, run = started(importance="learned", interval=1)
    whole = said(network)
    assert [round(run.done(n), 3) for n in (0, 3, 6, 9, 12)] == [0, 0.5, 1, 1, 1]
    assert run.gates is not None and torch.equal(said(network), whole)
    for number in range(1, 12):
        assert not step(network, run, number)
    assert run.kept() == {} and not run.is_due
    run.evaluate(12)
    evaluated = said(network)
    assert step(network, run, 12) and run.is_due and run.gates is None
    assert {len(indices) for indices in run.kept().values()} == {8}
    assert (evaluated - whole).abs().max() > 1e-4


def test_a_run_that_ends_early_keeps_what_is_shut() -> None:
    network, run = started(importance="magnitude")
    for number in range(1, 6):
        step(network, run, number)
    left = run.masks.left
    run.stop()
    assert run.masks.left == left and set(left.values()) == {16}
    network, run = started(importance="learned", interval=1)
    for number in range(1, 4):
        step(network, run, number)
    run.stop()
    # A third of the way: half of what is to go by the middle.
    assert run.gates is None and set(run.masks.left.values()) <= {16, 24}


def test_a_state_goes_on_bit_for_bit() -> None:
    network, run = started(importance="taylor", interval=2)
    for number in range(1, 6):
        step(network, run, number)
    state = {**run.state_dict(), **run.measured_state({}, 5, alone)}
    other: Any = build("bert", torch.float32)
    other.load_state_dict(network.state_dict())
    resumed = StructuredRun(run.plan)
    resumed.load_state_dict(state)
    resumed.look(other)
    resumed.start(12)
    for number in range(6, 13):
        assert step(network, run, number) == step(other, resumed, number)
    assert run.kept() == resumed.kept()
    for first, second in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)


def test_times_are_measured_once_and_by_one() -> None:
    asked: list[int] = []

    def once(measure: Any) -> Any:
        asked.append(1)
        return measure()

    network: Any = build("bert", torch.float32)
    plan = StructuredPlan(speedup=1.0001, speed_batch=1, speed_length=2)
    run = StructuredRun(plan)
    with suppress(ValueError):  # the clock may say that nothing can be won
        run.look(network, once)
    assert asked == [1] and run.times is not None
    again = StructuredRun(plan)
    again.load_state_dict({"times": run.times.state_dict()})
    with suppress(ValueError):
        again.look(network, once)
    assert asked == [1]


def test_frozen_readers_are_named_before_a_step() -> None:
    network, run = started()
    owned = {id(p) for p in network.parameters()}
    run.check_trained(owned)
    name = run.units[0].name
    with pytest.raises(ValueError, match=f"units of {name} by: it is frozen"):
        run.check_trained(set())
    network.get_submodule(name).weight.requires_grad_(False)
    with pytest.raises(ValueError, match="it is frozen"):
        run.check_trained(owned)
    _, other = started(importance="magnitude")
    other.check_trained(set())


def test_a_plan_without_units_has_no_course() -> None:
    network: Any = build("bert", torch.float32)
    run = StructuredRun(StructuredPlan(layers=2))
    run.look(network)
    run.start(12)
    assert not run.units and not run.choose(6, alone) and not run.is_due
    run.evaluate(3)
    run.stop()
    assert run.state_dict()["masked"] == {}
