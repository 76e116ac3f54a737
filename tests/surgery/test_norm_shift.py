"""Moved normalizations compute with moved weights, and leave the base's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from lmkit.surgery.base import NothingMatchedError
from lmkit.surgery.composition import use_adapters
from lmkit.surgery.norm_shift import Shift, find_norms, shift


def moved() -> Any:
    torch.manual_seed(0)
    network = nn.Sequential(nn.LayerNorm(4))
    layer = shift(network, "0")
    for name in ("a", "b"):
        layer.adapters[name] = Shift(layer.base_layer)
        nn.init.normal_(layer.adapters[name].weight)
        nn.init.normal_(layer.adapters[name].bias)
    return network


def test_the_weighted_sum_of_shifts_is_added() -> None:
    network, x = moved(), torch.randn(3, 4)
    layer = network[0]
    a, b = layer.adapters["a"], layer.adapters["b"]
    use_adapters(network, {"a": 0.5, "b": 2})
    expected = functional.layer_norm(
        x, (4,), 1 + 0.5 * a.weight + 2 * b.weight, 0.5 * a.bias + 2 * b.bias
    )
    assert (network(x) - expected).abs().max() < 1e-6
    assert torch.equal(layer.tensors()["weight"], 1 + 0.5 * a.weight + 2 * b.weight)
    use_adapters(network, {})
    assert torch.equal(network(x), functional.layer_norm(x, (4,)))
    assert shift(network, "0") is layer


def test_one_that_is_folded_is_not_moved_again_nor_switched() -> None:
    network, x = moved(), torch.randn(3, 4)
    use_adapters(network, {"a": 1})
    network[0].folded = True
    assert torch.equal(network(x), functional.layer_norm(x, (4,)))
    with pytest.raises(ValueError, match="unfold it"):
        use_adapters(network, {"a": 0})


def test_a_network_without_normalizations_is_named() -> None:
    with pytest.raises(NothingMatchedError, match="no normalization with weights"):
        find_norms(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2, elementwise_affine=False)))
