"""What is seen of the attention over adapters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmkit.surgery.adapter import Adapter
from lmkit.surgery.adapter_fusion import AdapterFusion
from lmkit.surgery.fusion_attention import FusionAttention


def network_of(names: str, layers: int = 2) -> nn.ModuleList:
    """Return a chain of adapted layers whose adapters add something."""
    network = nn.ModuleList([nn.ModuleDict({"fc2": nn.Linear(4, 4)}) for _ in range(layers)])
    for name in names:
        Adapter(name, "pfeiffer", size=2)(network)
    AdapterFusion(names)(network)
    for layer in network:
        for parameter in layer["fc2"].parameters():
            nn.init.normal_(parameter)
    return network


def test_it_is_the_mean_softmax_over_layers_and_positions() -> None:
    torch.manual_seed(0)
    network, inputs = network_of("ab"), torch.randn(3, 5, 4)
    watch = FusionAttention()
    watch.begin(network, ["fusion", "other"])
    expected = []
    for layer in network:
        layer["fc2"](inputs)
        inner, fusion = layer["fc2"], layer["fc2"].fusions["fusion"]
        output = nn.functional.linear(inputs, inner.weight, inner.bias)
        added = torch.stack([inner.adapters[name](output) for name in "ab"], -2)
        query, keys = output @ fusion.query.T, added @ fusion.key.T
        scores = torch.einsum("bsh,bsth->bst", query, keys)
        expected.append(scores.softmax(-1).mean((0, 1)))
    found = watch.end()
    assert list(found) == ["fusion"] and list(found["fusion"]) == ["a", "b"]
    mean = torch.stack(expected).mean(0)
    assert not torch.allclose(mean, torch.full((2,), 0.5), atol=1e-2)
    assert torch.allclose(torch.stack(list(found["fusion"].values())), mean, atol=1e-6)


def test_after_the_end_nothing_is_watched() -> None:
    network, watch = network_of("ab"), FusionAttention()
    watch.begin(network, ["fusion"])
    assert watch.end() == {}
    assert not any(module._forward_hooks for module in network.modules())
    network[0]["fc2"](torch.ones(1, 4))
    assert watch.end() == {}


def test_of_no_mixture_nothing_is_seen() -> None:
    network, watch = network_of("ab"), FusionAttention()
    watch.begin(network, [])
    network[0]["fc2"](torch.ones(1, 4))
    assert watch.end() == {}


@pytest.mark.parametrize("passes", [1, 3])
def test_all_passes_count_alike(passes: int) -> None:
    torch.manual_seed(1)
    network, watch, batches = network_of("abc", 1), FusionAttention(), torch.randn(passes, 2, 4)
    single = []
    for batch in batches:
        watch.begin(network, ["fusion"])
        network[0]["fc2"](batch)
        single.append(torch.stack(list(watch.end()["fusion"].values())))
    watch.begin(network, ["fusion"])
    for batch in batches:
        network[0]["fc2"](batch)
    joined = torch.stack(list(watch.end()["fusion"].values()))
    assert torch.allclose(joined, torch.stack(single).mean(0), atol=1e-6)
    assert float(joined.sum()) == pytest.approx(1.0, abs=1e-5)
