"""Units are found in each architecture, and a gate multiplies what a reader gets of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from lmkit.surgery.units import Units, find_units, gate_units, gated
from tests.surgery.pruned import NETWORKS, build, masks, said, scores, some

#: How many heads there are, how wide one is for its reader, and how many inner neurons.
_COUNTS = {"llama": (2, 8, 24), "gpt2": (4, 4, 64)}


@pytest.mark.parametrize("name", NETWORKS)
def test_units_are_found_layer_by_layer(name: str) -> None:
    network = build(name)
    units = find_units(network)
    heads, width, neurons = _COUNTS.get(name, (4, 4, 24))
    assert {(u.count, u.width) for u in units if u.kind == "heads"} == {(heads, width)}
    assert {(u.count, u.width) for u in units if u.kind == "ffn"} == {(neurons, 1)}
    assert len({u.name for u in units}) == len(units)
    for each in units:
        assert each.name == each.readers[0]
        for reader in each.readers:
            layer: Any = network.get_submodule(reader)
            inputs = layer.nx if isinstance(layer, Conv1D) else layer.in_features
            assert inputs == each.count * each.width
    both = network.config.is_encoder_decoder
    assert {u.stack for u in units} == ({"encoder", "decoder"} if both else {""})
    assert find_units(network, ("ffn",)) == [u for u in units if u.kind == "ffn"]
    if both:
        return
    assert [(u.layer, u.kind) for u in units] == [
        (layer, kind) for layer in range(3) for kind in ("heads", "ffn")
    ]


def test_the_heads_of_a_stack_of_t5_are_one_group() -> None:
    units = [u for u in find_units(build("t5")) if u.kind == "heads"]
    assert [u.name for u in units] == [
        "encoder.block.0.layer.0.SelfAttention.o",
        "decoder.block.0.layer.0.SelfAttention.o",
        "decoder.block.0.layer.1.EncDecAttention.o",
    ]
    assert units[1].readers == tuple(
        f"decoder.block.{layer}.layer.0.SelfAttention.o" for layer in range(3)
    )
    crossing = [u for u in find_units(build("bart")) if "encoder_attn" in u.name]
    assert [u.layer for u in crossing] == [0, 1, 2] and crossing[0].stack == "decoder"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_gate_scales_the_columns_of_its_readers(name: str) -> None:
    """A reference by the weights: W (g * x) is (W * g) x."""
    network, reference = build(name), build(name)
    units = find_units(network)
    generator = torch.Generator().manual_seed(1)
    gates = {u.name: 2 * torch.rand(u.count, generator=generator).double() for u in units}
    for each in units:
        for reader in each.readers:
            layer: Any = reference.get_submodule(reader)
            scale = gates[each.name].repeat_interleave(each.width)
            layer.weight.data *= scale[:, None] if isinstance(layer, Conv1D) else scale
    keys = network.state_dict().keys()
    whole = said(network)
    with gated(network, gates):
        opened = said(network)
        assert network.state_dict().keys() == keys
    torch.testing.assert_close(opened, said(reference), rtol=0, atol=1e-10)
    assert not torch.allclose(opened, whole) and torch.equal(said(network), whole)
    with gated(network, {n: torch.ones_like(g) for n, g in gates.items()}):
        assert torch.equal(said(network), whole), "a gate of one is none"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_of_a_gate_is_that_of_its_columns(name: str) -> None:
    """At g = 1 it is the sum of W * dL/dW over the columns of the unit, in all its readers."""
    network = build(name)
    units = find_units(network)
    gates = {u.name: torch.ones(u.count, dtype=torch.float64, requires_grad=True) for u in units}
    handles = gate_units(network, units, gates)
    scores(network).square().mean().backward()
    for each in units:
        wanted = torch.zeros(each.count, dtype=torch.float64)
        for reader in each.readers:
            layer: Any = network.get_submodule(reader)
            product = (layer.weight * layer.weight.grad).detach()
            inputs = product.sum(1) if isinstance(layer, Conv1D) else product.sum(0)
            wanted += inputs.unflatten(0, (each.count, each.width)).sum(1)
        found = gates[each.name].grad
        assert found is not None and found.any()
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)
    for handle in handles:
        handle.remove()


def test_a_gate_closes_the_bias_too() -> None:
    """Rows of the writing layer set to zero leave what an activation makes of the bias."""
    network, halved = build("bert"), build("bert")
    name = "bert.encoder.layer.0.output.dense"
    gates = masks(network, {name: [0, 1, 2]})
    halved.get_submodule("bert.encoder.layer.0.intermediate.dense").weight.data[3:] = 0
    with gated(network, gates):
        assert (said(network) - said(halved)).abs().max() > 1e-3


def test_a_gate_may_change_while_it_is_there_and_has_the_inputs_precision() -> None:
    network = build("gpt2", torch.bfloat16)
    units = find_units(network)
    gate = torch.ones(units[0].count)
    whole = said(network)
    (handle,) = gate_units(network, units, {units[0].name: gate})
    assert torch.equal(said(network), whole) and said(network).dtype == torch.bfloat16
    gate[0] = 0
    assert not torch.equal(said(network), whole)
    handle.remove()
    assert torch.equal(said(network), whole)


def test_wrapped_layers_are_found_and_gated() -> None:
    pytest.importorskip("peft")
    from lmkit.surgery.lora import LoRA

    network = build("bert", torch.float32)
    before = find_units(network)
    LoRA(targets=["all"])(network)
    assert find_units(network) == before
    gates = masks(network, some(before))
    whole = said(network)
    with gated(network, gates):
        assert not torch.allclose(said(network), whole)


def test_gates_that_do_not_fit_are_refused() -> None:
    network = build("bert")
    units: list[Units] = find_units(network)
    with pytest.raises(ValueError, match="gates name 'bert', and the units are"):
        gate_units(network, units, {"bert": torch.ones(4)})
    with pytest.raises(ValueError, match=r"must have the shape \(4,\), got \(3,\)"):
        gate_units(network, units, {units[0].name: torch.ones(3)})
    assert not any(module._forward_pre_hooks for module in network.modules())
    with pytest.raises(ValueError, match="kinds must be of heads, ffn, got 'layers'"):
        find_units(network, ("layers",))
