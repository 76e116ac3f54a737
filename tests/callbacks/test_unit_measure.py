"""Scores are means over steps that were done, and later ones count more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmkit.callbacks.unit_masks import UnitMasks
from lmkit.callbacks.unit_measure import UnitMeasure
from lmkit.functional.unit_importance import magnitude_importance, random_importance
from lmkit.surgery.units import Units, find_units
from tests.surgery.pruned import build, inputs, scores


def measured(name: str, importance: str) -> tuple[Any, UnitMasks, UnitMeasure]:
    network = build(name)
    masks, measure = UnitMasks(), UnitMeasure(importance, seed=3)
    masks.start(network, find_units(network))
    measure.start(masks, network)
    return network, masks, measure


def step(network: Any, measure: UnitMeasure, factor: float = 1.0, scale: float = 1.0) -> set[int]:
    """Go through a step as a fit does, but for the optimizer."""
    owned = {id(p) for p in network.parameters()}
    network.zero_grad()
    measure.begin(inputs(network))
    (scores(network).sin().sum() * scale).backward()
    measure.end()
    measure.observe(factor, owned)
    return owned


def test_a_step_adds_the_absolute_derivatives_and_what_is_struck_down_nothing() -> None:
    network, masks, measure = measured("bert", "taylor")
    owned = step(network, measure)
    expected = {n: masks.gate_gradients(n, owned) for n in masks.units}
    assert not measure.has_seen
    measure.commit()
    assert measure.has_seen and measure.steps == 1
    step(network, measure, scale=-3.0)  # the sign of a whole step does not matter
    measure.commit()
    for name, found in measure.scores().items():
        one = expected[name]
        assert one is not None and torch.allclose(found, 4 * one.abs(), rtol=1e-10)
    step(network, measure)
    before = {n: t.clone() for n, t in measure.scores().items()}
    measure.observe(float("nan"), owned)  # a loss scaler skips it
    measure.commit()
    assert all(torch.equal(before[n], t) for n, t in measure.scores().items())


def test_a_factor_multiplies_and_earlier_choices_count_half() -> None:
    network, _, measure = measured("gpt2", "taylor")
    step(network, measure)
    measure.commit()
    first = {n: t.clone() for n, t in measure.scores().items()}
    measure.fade()
    assert measure.steps == 0.5
    step(network, measure, factor=2.0)
    measure.commit()
    for name, found in measure.scores().items():
        assert torch.allclose(found, 2.5 * first[name], rtol=1e-10)
    measure.reset()
    assert not measure.has_seen


def test_activity_is_a_mean_over_the_real_tokens_of_batches_and_their_weights() -> None:
    network, masks, measure = measured("bert", "activation")
    name = "bert.encoder.layer.1.output.dense"
    seen: list[Tensor] = []
    layer = network.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    step(network, measure)
    step(network, measure)  # of the same optimizer step
    measure.commit()
    network(**inputs(network))  # an evaluation, which nobody asked to measure
    handle.remove()
    mask = inputs(network)["attention_mask"].bool()
    mean = torch.cat([x[mask] for x in seen[:2]]).abs().mean(0)
    expected = mean * layer.weight.norm(dim=0)
    assert torch.allclose(measure.scores()[name].double(), expected, rtol=1e-5)
    masks.shut({n: torch.arange(len(m)) == 0 for n, m in masks.masked.items()})
    assert torch.allclose(measure.scores()[name].double(), expected, rtol=1e-5)


def test_the_others_need_no_steps() -> None:
    network, masks, measure = measured("gpt2", "magnitude")
    assert measure.has_seen
    first = next(iter(masks.units))
    weight = network.get_submodule(first).weight.T
    assert torch.allclose(
        measure.scores()[first], magnitude_importance([weight], masks.units[first].count)
    )
    _, masks, measure = measured("gpt2", "random")
    units = masks.units[first]
    expected = random_importance(units.count, units.width, 3, first)
    assert torch.equal(measure.scores()[first], expected)


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_what_nothing_was_seen_of_is_named(importance: str) -> None:
    _, _, measure = measured("bert", importance)
    with pytest.raises(ValueError, match=r"units of bert.encoder.layer.0.attention.output.dense"):
        measure.scores()


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_a_state_goes_on_in_the_middle_of_a_window(importance: str) -> None:
    network, _, measure = measured("t5", importance)
    step(network, measure)
    measure.commit()
    step(network, measure, scale=0.5)
    state = measure.state_dict()
    assert all(isinstance(t, Tensor) for t in state["sums"].values())
    other = UnitMeasure(importance)
    other.load_state_dict(state)
    masks = UnitMasks()
    masks.start(network, find_units(network))
    other.start(masks, network)
    if importance == "taylor":  # whose window is in the gradients, which a module saves
        step(network, other, scale=0.5)
    measure.commit()
    other.commit()
    assert other.steps == measure.steps == 2
    assert all(torch.equal(t, other.scores()[n]) for n, t in measure.scores().items())


def test_activity_is_joined_over_ranks_before_it_is_divided() -> None:
    network, _, measure = measured("bert", "activation")
    step(network, measure)
    measure.commit()
    alone = measure.scores()
    both = measure.scores(lambda tensor: tensor.mul_(2))  # two ranks that read the same
    assert all(torch.allclose(both[n], alone[n]) for n in alone)
    assert all(torch.equal(alone[n], t) for n, t in measure.scores().items())


def test_without_a_mask_all_rows_count_and_hooks_go() -> None:
    network = nn.Sequential(nn.Linear(2, 1, bias=False))
    masks, measure = UnitMasks(), UnitMeasure("activation")
    masks.start(network, [Units("ffn", "0", ("0",), 2, 1, 0, "")])
    measure.start(masks)
    measure.begin(torch.zeros(3))  # a batch of no names
    network(torch.tensor([[1.0, 0.0], [-3.0, 4.0]]))
    measure.commit()
    weight = network[0].weight[0].abs()
    assert torch.allclose(measure.scores()["0"], torch.tensor([2.0, 2.0]) * weight)
    measure.close()
    assert not network[0]._forward_pre_hooks
