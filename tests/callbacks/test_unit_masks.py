"""Zero columns are shut gates: what comes out, what gradients say, and what is held meanwhile."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmkit.callbacks.unit_masks import UnitMasks, check_apart, columns_of
from lmkit.surgery.unit_gates import straight_weight
from lmkit.surgery.units import Units, find_units, gate_units, gated
from tests.surgery.pruned import build, said, scores

ARCHITECTURES = ("bert", "gpt2", "llama", "modernbert", "t5")


def some_shut(units: list[Units], seed: int = 0) -> dict[str, Tensor]:
    """Shut about a third of all units, and at least one of each group."""
    draw = torch.Generator().manual_seed(seed)
    masks = {each.name: torch.rand(each.count, generator=draw) < 0.35 for each in units}
    for mask in masks.values():
        mask[0], mask[-1] = True, False
    return masks


def started(network: Any, shut: bool = True) -> tuple[UnitMasks, list[Units], dict[str, Tensor]]:
    units = find_units(network)
    masks, chosen = UnitMasks(), some_shut(units)
    masks.start(network, units)
    if shut:
        masks.shut(chosen)
    return masks, units, chosen


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_shut_is_as_behind_a_gate_of_zero(name: str) -> None:
    network = build(name, torch.float64)
    gates = {n: (~m).double() for n, m in some_shut(find_units(network)).items()}
    with gated(network, gates):
        expected = said(network)
    whole = said(network)
    masks, units, chosen = started(network)
    assert torch.allclose(said(network), expected, rtol=0, atol=1e-12)
    assert (whole - expected).abs().max() > 1e-4
    assert masks.left == {each.name: int((~chosen[each.name]).sum()) for each in units}
    masks.open()
    assert torch.equal(said(network), whole)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_of_gates_are_those_of_gates_that_are_there(name: str) -> None:
    network = build(name, torch.float64)
    units, chosen = find_units(network), some_shut(find_units(network))
    gates = {n: (~m).double().requires_grad_() for n, m in chosen.items()}
    handles = gate_units(network, units, gates)
    _loss(network).backward()
    for handle in handles:
        handle.remove()
    network.zero_grad()
    masks, _, _ = started(network)
    owned = {id(p) for p in network.parameters()}
    _loss(network).backward()
    for each in units:
        found, expected = masks.gate_gradients(each.name, owned), gates[each.name].grad
        assert found is not None and expected is not None
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-12), each.name
        # Those of shut gates are no zeros: they tell what would be won.
        assert found[chosen[each.name]].abs().max() > 1e-8
    assert masks.gate_gradients(units[0].name, set()) is None
    frozen: Any = network.get_submodule(units[0].name)
    frozen.weight.grad = None
    assert masks.gate_gradients(units[0].name, owned) is None


def test_shut_units_stand_still_and_come_back_as_they_were() -> None:
    network = build("bert")
    masks, units, chosen = started(network, shut=False)
    before = {r: straight_weight(layer).clone() for r, layer in masks.layers.items()}
    masks.shut(chosen)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        _loss(network, train=True).backward()
        masks.drop_gradients({id(p) for p in network.parameters()})
        optimizer.step()
        masks.apply()
        for each in units:
            columns = columns_of(chosen[each.name], each.width)
            assert not straight_weight(masks.layers[each.name])[:, columns].any()
    masks.open()
    for each in units:
        shut = columns_of(chosen[each.name], each.width)
        now, then = straight_weight(masks.layers[each.name]), before[each.name]
        assert torch.equal(now[:, shut], then[:, shut])
        live = columns_of(~chosen[each.name], each.width)
        assert not torch.equal(now[:, live], then[:, live])


def test_other_units_are_shut_without_losing_any() -> None:
    network = build("gpt2")
    masks, units, _ = started(network)
    whole = {each.name: [w.clone() for w in masks.whole(each.name)] for each in units}
    masks.shut(some_shut(units, seed=1))
    for each in units:
        for now, then in zip(masks.whole(each.name), whole[each.name], strict=True):
            assert torch.equal(now, then)


def test_copies_of_the_weights_get_the_same_zeros() -> None:
    network = build("gpt2")
    copied = copy.deepcopy(network)
    masks, units, chosen = started(network)
    masks.apply_to(dict(zip(map(id, network.parameters()), copied.parameters(), strict=True)))
    for each in units:
        weight = straight_weight(copied.get_submodule(each.name))
        assert not weight[:, columns_of(chosen[each.name], each.width)].any()
    masks.apply_to({})


def test_a_state_is_taken_up_by_a_network_that_has_the_zeros() -> None:
    network = build("llama")
    masks, units, _ = started(network, shut=False)
    whole = said(network)
    masks.shut(some_shut(units))
    state, other = masks.state_dict(), copy.deepcopy(network)
    resumed = UnitMasks()
    resumed.load_state_dict(state)
    resumed.start(other, find_units(other))
    assert resumed.left == masks.left and torch.equal(said(other), said(network))
    resumed.open()
    assert torch.equal(said(other), whole)
    # Without a state all begin open.
    fresh = UnitMasks()
    fresh.load_state_dict({})
    fresh.start(other, find_units(other))
    assert not any(bool(mask.any()) for mask in fresh.masked.values())


def test_a_state_of_other_units_is_refused() -> None:
    masks, _, _ = started(build("bert"))
    other = UnitMasks()
    other.load_state_dict(masks.state_dict())
    with pytest.raises(ValueError, match="masks are of 6 groups of units, and 3 are to be pruned"):
        other.start(build("bert"), find_units(build("bert"), ["ffn"]))


def test_one_weight_that_reads_two_groups_is_refused() -> None:
    network = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    units = [Units("ffn", name, (name,), 2, 1, 0, "") for name in ("a", "b")]
    check_apart(network, units)
    network["b"].weight = network["a"].weight
    with pytest.raises(ValueError, match="b and a are one weight and read different units"):
        check_apart(network, units)


def _loss(network: Any, train: bool = False) -> Tensor:
    with torch.enable_grad():
        network.train(train)
        loss: Tensor = scores(network).square().mean()
    return loss
