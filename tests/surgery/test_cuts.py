"""Parameters are cut all at once, share what they shared, and say where they come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lmkit.surgery.cuts import Cutting, Slice, Slices, parameter_names, plain_layer
from lmkit.surgery.low_rank import LowRank


class Tied(nn.Module):
    """A table and a head that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight


def test_rows_and_columns_are_cut_and_sizes_set() -> None:
    network = nn.Sequential(nn.Linear(4, 3), Conv1D(6, 3))
    old = {n: p.detach().clone() for n, p in network.named_parameters()}
    cutting = Cutting(network)
    cutting.outputs("0", torch.tensor([0, 2]))
    cutting.inputs("1", torch.tensor([0, 2]))
    cutting.outputs("1", torch.tensor([5]))
    assert network[0].out_features == 3, "nothing happens before perform"
    origins = cutting.perform()
    assert (network[0].out_features, network[1].nx, network[1].nf) == (2, 2, 1)
    assert torch.equal(network[0].weight, old["0.weight"][[0, 2]])
    assert torch.equal(network[0].bias, old["0.bias"][[0, 2]])
    assert torch.equal(network[1].weight, old["1.weight"][[0, 2]][:, [5]])
    assert network(torch.ones(1, 4)).shape == (1, 1)
    for name, parameter in network.named_parameters():
        assert torch.equal(origins[id(parameter)].of(old[name]), parameter)


def test_what_is_shared_is_cut_once_and_stays_shared() -> None:
    network = Tied()
    network.table.weight.requires_grad_(False)
    cutting = Cutting(network)
    for name, module in (("embedding_dim", network.table), ("in_features", network.head)):
        cutting.parameter(module.weight, 1, torch.tensor([1, 3]))
        cutting.size(module, name, 2)
    origins = cutting.perform()
    assert network.head.weight is network.table.weight and network.head.in_features == 2
    assert not network.head.weight.requires_grad
    assert origins[id(network.head.weight)].name == "table.weight"


def test_two_ways_of_cutting_one_parameter_are_refused() -> None:
    network = Tied()
    cutting = Cutting(network)
    cutting.parameter(network.table.weight, 1, torch.tensor([1, 3]))
    cutting.parameter(network.head.weight, 1, torch.tensor([1, 3]))
    with pytest.raises(ValueError, match=r"table\.weight would be cut in two ways along.* 1"):
        cutting.parameter(network.head.weight, 1, torch.tensor([0, 3]))


def test_precision_gradient_and_place_are_kept() -> None:
    network = nn.Linear(3, 2).to(torch.bfloat16)
    network(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    other = network.bias
    cutting = Cutting(network)
    cutting.parameter(network.weight, 1, torch.tensor([0, 2]))
    cutting.perform()
    assert network.weight.dtype == torch.bfloat16 and network.weight.is_contiguous()
    assert network.weight.grad is not None and network.weight.grad.shape == (2, 2)
    assert network.bias is other and isinstance(network.weight, nn.Parameter)
    with torch.device("meta"):
        empty = nn.Linear(3, 2)
    cutting = Cutting(empty)
    cutting.parameter(empty.weight, 0, torch.tensor([1]))
    cutting.perform()
    assert empty.weight.is_meta and empty.weight.shape == (1, 3)


def test_slices_are_a_mapping_and_name_what_is_gone() -> None:
    slices = Slices({"a": Slice("b")}, ["a"])
    assert dict(slices) == {"a": Slice("b", ())} and slices.gone == ("a",)
    assert torch.equal(slices["a"].of(torch.eye(2)), torch.eye(2))
    network = Tied()
    assert list(parameter_names(network).values()) == ["table.weight"]


def test_layers_that_cannot_be_cut_are_refused_with_what_to_do() -> None:
    network: Any = nn.ModuleDict({"fc1": nn.Linear(9, 9), "norm": nn.LayerNorm(2)})
    LowRank({"fc1": 2})(network)
    with pytest.raises(ValueError, match=r"fc1 is a product of rank 2.*make it dense first"):
        plain_layer(network, "fc1")
    with pytest.raises(ValueError, match=r"norm is a LayerNorm .*only plain linear layers"):
        plain_layer(network, "norm")
    whole = nn.Linear(2, 2)
    whole.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    network["fc1"] = whole
    with pytest.raises(ValueError, match=r"fc1 is a Linear \(torch\.int8\).*is quantized"):
        plain_layer(network, "fc1")
