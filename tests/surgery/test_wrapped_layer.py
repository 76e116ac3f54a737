"""A wrapped layer looks like the one inside, and switches what it knows."""

from __future__ import annotations

import torch
from torch import nn

from lmkit.surgery.wrapped_layer import WrappedLayer


def test_it_shows_the_weights_of_the_layer_inside_also_of_a_wrapped_one() -> None:
    layer = nn.Linear(3, 2)
    twice = WrappedLayer(WrappedLayer(layer))
    assert twice.weight is layer.weight and twice.bias is layer.bias
    assert WrappedLayer(nn.Linear(3, 2, bias=False)).bias is None
    assert set(twice.state_dict()) == {
        f"base_layer.base_layer.{name}" for name in ("weight", "bias")
    }


def test_what_is_left_out_is_off_and_names_from_elsewhere_are_left() -> None:
    wrapped = WrappedLayer(nn.Linear(2, 2))
    wrapped.adapters["a"] = nn.Identity()
    wrapped.adapters["b"] = nn.Identity()
    wrapped.fusions = {"both": ("a", "b")}
    assert wrapped.adapter_names == ("a", "b", "both") and wrapped.active_adapters == {}
    wrapped.use({"both": 1, "b": 0.5, "elsewhere": 2})
    # In the order of the layer, whatever that of the mapping.
    assert list(wrapped.active_adapters.items()) == [("b", 0.5), ("both", 1.0)]
    wrapped.active_adapters.clear()
    assert wrapped.active_adapters
    wrapped.use({})
    assert wrapped.active_adapters == {}


def test_weights_are_no_part_of_the_state() -> None:
    wrapped = WrappedLayer(nn.Linear(2, 2))
    wrapped.adapters["a"] = nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    wrapped.use({"a": 0.5})
    after = wrapped.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
