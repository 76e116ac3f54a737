"""A bottleneck computes its formula, and stands behind a projection without being one."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from lmkit.surgery.bottleneck import (
    ACTIVATIONS,
    AdaptedLayer,
    Bottleneck,
    Handover,
    adapt,
    layer_width,
)
from tests.surgery.adapted import stir


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_adapter_computes_the_dense_formula(activation: str) -> None:
    adapter = Bottleneck(6, 5, 3, activation, scale=2.5).double()
    stir(adapter, "")
    x = torch.randn(4, 6, dtype=torch.float64)
    weights = {name: p.detach().numpy() for name, p in adapter.named_parameters()}
    narrow = x.numpy() @ weights["down"].T + weights["down_bias"]
    bent = ACT2FN[activation if activation != "identity" else "linear"](torch.from_numpy(narrow))
    expected = 2.5 * (bent.numpy() @ weights["up"].T + weights["up_bias"])
    assert np.allclose(adapter(x).detach().numpy(), expected, atol=1e-12)


def test_a_compacter_is_an_adapter_with_the_dense_weights() -> None:
    rule = nn.Parameter(torch.randn(2, 2, 2))
    compact = Bottleneck(8, 8, 4, "tanh", rule=rule, rank=2).double()
    stir(compact, "")
    dense = Bottleneck(8, 8, 4, "tanh").double()
    with torch.no_grad():
        for name, left in (("down", rule), ("up", rule)):
            rows, columns = (getattr(compact, f"{name}_{end}") for end in ("rows", "columns"))
            products = [torch.kron(left[i], rows[i] @ columns[i]) for i in range(2)]
            getattr(dense, name).copy_(sum(products))
            getattr(dense, f"{name}_bias").copy_(getattr(compact, f"{name}_bias"))
    x = torch.randn(3, 8, dtype=torch.float64)
    assert torch.allclose(compact(x), dense(x), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_compacter_starts_with_the_spread_of_a_linear_layer(rank: int) -> None:
    torch.manual_seed(0)
    n = 4
    spreads = []
    for _ in range(30):
        rule = nn.Parameter(torch.randn(n, n, n) / n**0.5)
        spreads.append(Bottleneck(384, 384, 48, rule=rule, rank=rank).matrices()[0].var())
    assert torch.stack(spreads).mean().item() == pytest.approx(1 / (3 * 384), rel=0.2)


@pytest.mark.parametrize("rule", [None, torch.randn(2, 2, 2)], ids=["plain", "compacter"])
def test_a_bottleneck_adds_nothing_at_first_and_learns_all_the_same(rule: Tensor | None) -> None:
    adapter = Bottleneck(6, 4, 2, rule=None if rule is None else nn.Parameter(rule))
    x = torch.randn(3, 6)
    assert torch.equal(adapter(x), torch.zeros(3, 4))
    adapter(x).sum().backward()
    moved = {n for n, p in adapter.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"up_bias", "up" if rule is None else "up_columns"}


@pytest.mark.parametrize("rule", [None, nn.Parameter(torch.randn(2, 2, 2))])
def test_held_weights_pass_the_gradient_on_and_get_none(rule: nn.Parameter | None) -> None:
    adapter = Bottleneck(6, 4, 2, rule=rule)
    stir(adapter, "")
    adapter.zero_grad()
    x = torch.randn(3, 6, requires_grad=True)
    free = adapter(x)
    (expected,) = torch.autograd.grad(free.square().sum(), x)
    held = adapter(x, learn=False)
    held.square().sum().backward()
    assert torch.equal(held, free) and torch.equal(x.grad, expected) and x.grad.any()
    assert all(parameter.grad is None for parameter in adapter.parameters())


def test_half_of_a_bottleneck_is_dropped_and_its_mean_stays() -> None:
    adapter = Bottleneck(4, 4, 2000, "identity", dropout=0.5)
    for ones in (adapter.down_bias, adapter.up):
        nn.init.ones_(ones)
    # 2000 ones are summed up: half of them, and twice each.
    assert adapter(torch.zeros(1, 4)).mean().item() == pytest.approx(2000, rel=0.1)
    assert adapter(torch.zeros(1, 4)).mean().item() != 2000
    assert adapter.eval()(torch.zeros(1, 4)).mean().item() == 2000


def adapted(**adapters: Bottleneck) -> AdaptedLayer:
    layer = AdaptedLayer(nn.Linear(5, 3))
    layer.adapters.update(adapters)
    stir(layer)
    return layer


def test_a_layer_adds_what_its_active_adapters_read_from_its_own_output() -> None:
    layer, x = adapted(a=Bottleneck(3, 3, 2), b=Bottleneck(3, 3, 4)), torch.randn(4, 5)
    y = layer.base_layer(x)
    assert torch.equal(layer(x), y)
    layer.use({"a": 0.5, "b": -1.0, "elsewhere": 3.0})
    assert layer.active_adapters == {"a": 0.5, "b": -1.0}
    expected = y + 0.5 * layer.adapters["a"](y) - layer.adapters["b"](y)
    assert torch.allclose(layer(x), expected, atol=1e-6)
    layer.use({})
    assert torch.equal(layer(x), y)
    # What is active is no part of the state dict.
    assert not any("weights" in key for key in layer.state_dict())


def test_an_adapter_that_reads_the_input_gets_that_of_the_first_projection() -> None:
    first, last = AdaptedLayer(nn.Linear(5, 7)), AdaptedLayer(nn.Linear(7, 3))
    first.gives = last.takes = Handover(5)
    last.adapters["a"] = Bottleneck(5, 3, 2, reads_input=True)
    stir(last)
    last.use({"a": 1.0})
    x = torch.randn(4, 5)
    middle = first(x).relu()
    expected = last.base_layer(middle) + last.adapters["a"](x)
    assert torch.equal(last(middle), expected)


def test_a_handover_is_emptied_by_the_taking_and_by_a_copy() -> None:
    handover, held = Handover(3), torch.ones(2, 3)
    handover.held = held
    for other in (copy.deepcopy(handover), pickle.loads(pickle.dumps(handover))):
        assert other.width == 3 and other.held is None
    assert handover.take() is held and handover.held is None
    with pytest.raises(RuntimeError, match="called without its first"):
        handover.take()


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), Conv1D(3, 5)], ids=["Linear", "Conv1D"])
def test_a_wrapped_projection_looks_like_the_projection(layer: Any) -> None:
    wrapped = AdaptedLayer(AdaptedLayer(layer))
    assert layer_width(layer) == layer_width(wrapped) == (5, 3)
    assert (wrapped.in_features, wrapped.out_features) == (5, 3)
    assert wrapped.weight is layer.weight and wrapped.bias is layer.bias


def test_a_layer_is_wrapped_once_and_found_inside_other_wrappers() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layer = adapt(network, "1")
    assert network[1] is layer and adapt(network, "1") is layer
    assert isinstance(network[0], nn.Linear)

    class Wrapper(nn.Module):
        def __init__(self, base_layer: nn.Module) -> None:
            super().__init__()
            self.base_layer = base_layer

    network[1] = Wrapper(layer)
    assert adapt(network, "1") is layer
    network[0] = Wrapper(network[0])
    outer = adapt(network, "0")
    assert network[0] is outer and isinstance(outer.base_layer, Wrapper)
