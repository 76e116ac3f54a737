"""A fusion mixes adapters by attention, and trains nothing but that."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lmkit.surgery import from_spec, to_spec
from lmkit.surgery.adapter import KINDS, Adapter
from lmkit.surgery.adapter_fusion import AdapterFusion, Fusion
from lmkit.surgery.bottleneck import AdaptedLayer
from lmkit.surgery.norm_shift import Shifted
from tests.surgery.adapted import NETWORKS, bert, build, inputs, logits, stir


def with_adapters(network: nn.Module, *kinds: str, **settings: Any) -> nn.Module:
    for name, kind in zip("abcde", kinds, strict=False):
        Adapter(name, kind, size=4, **settings)(network)
    stir(network)
    return network


def use(network: nn.Module, **weights: float) -> None:
    for module in network.modules():
        if isinstance(module, AdaptedLayer | Shifted):
            module.use(weights)


def fusions(network: nn.Module) -> list[Fusion]:
    return [module for module in network.modules() if isinstance(module, Fusion)]


def test_a_fusion_computes_the_formula_of_the_paper() -> None:
    fusion = Fusion("abc", width=6).double()
    rng = np.random.default_rng(0)
    y, z = rng.normal(size=(5, 6)), rng.normal(size=(3, 5, 6))
    query, key, value = rng.normal(size=(3, 6, 6))
    with torch.no_grad():
        for name, numbers in (("query", query), ("key", key), ("value", value)):
            getattr(fusion, name).copy_(torch.from_numpy(numbers))
    expected = np.zeros_like(y)
    for row in range(5):
        scores = np.array([(query @ y[row]) @ (key @ z[t, row]) for t in range(3)])
        attention = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        expected[row] = sum(attention[t] * (value @ z[t, row]) for t in range(3))
    made = fusion(torch.from_numpy(y), [torch.from_numpy(part) for part in z])
    assert np.allclose(made.detach().numpy(), expected, atol=1e-10)


def test_the_order_of_the_adapters_does_not_matter() -> None:
    fusion = Fusion("abc", width=6)
    y, z = torch.randn(2, 5, 6), list(torch.randn(3, 2, 5, 6))
    assert torch.allclose(fusion(y, z), fusion(y, z[::-1]), atol=1e-6)


def test_at_first_each_adapter_counts_about_the_same() -> None:
    torch.manual_seed(0)
    fusion = Fusion("ab", width=384)
    seen: list[torch.Tensor] = []
    fusion.attention.register_forward_hook(lambda module, taken, out: seen.append(out))
    fusion(torch.randn(200, 384), list(0.3 * torch.randn(2, 200, 384)))
    assert torch.allclose(seen[0].mean(0), torch.tensor([0.5, 0.5]), atol=0.05)
    identity = (fusion.value.detach() - torch.eye(384)).abs().max()
    assert 0 < identity < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norms", [False, True])
def test_of_one_adapter_with_an_identity_it_is_that_adapter(kind: str, norms: bool) -> None:
    network = with_adapters(bert(), kind, norms=norms)
    alone = logits(network)
    AdapterFusion(["a"])(network)
    for fusion in fusions(network):
        nn.init.eye_(fusion.value)
    assert torch.allclose(logits(network), alone, atol=1e-5)
    use(network, a=1.0)
    assert torch.equal(logits(network), alone)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_the_fusion_and_the_head_learn(name: str) -> None:
    network = with_adapters(build(name), "pfeiffer", "parallel", "pfeiffer", norms=True)
    AdapterFusion(["a", "b"])(network)
    logits(network).square().sum().backward()
    learned = {n for n, p in network.named_parameters() if p.requires_grad}
    for weight, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, weight
    mixed = {weight for weight in learned if ".fusions." in weight}
    assert len(mixed) == 3 * NETWORKS[name][2]
    others = ("classifier", "qa_outputs", "score", "head.", ".adapters.c.")
    assert all(any(part in weight for part in others) for weight in learned - mixed)


def test_its_size_is_three_square_matrices_a_layer() -> None:
    network = bert(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    for name in "ab":
        Adapter(name, "pfeiffer", head=False)(network)
    AdapterFusion(["a", "b"], head=False)(network)
    learned = [p.numel() for p in network.parameters() if p.requires_grad]
    assert sum(learned) == 6 * 3 * 384**2


def test_adapters_that_stand_in_some_layers_are_mixed_there() -> None:
    network = with_adapters(bert(), "houlsby", "pfeiffer", norms=False)
    AdapterFusion(["a", "b"])(network)
    assert [fusion.names for fusion in fusions(network)] == [("a",), ("a", "b")] * 2


def test_norms_are_moved_by_the_mean_of_what_the_adapters_move() -> None:
    network = with_adapters(bert(), "houlsby", "houlsby")
    AdapterFusion(["a", "b"])(network)
    norm = network.get_submodule("bert.embeddings.LayerNorm")
    x = torch.randn(3, 16)
    scales, biases = (
        [getattr(norm.adapters[name], part) for name in "ab"] for part in ("weight", "bias")
    )
    expected = nn.functional.layer_norm(
        x, (16,), norm.weight + sum(scales) / 2, norm.bias + sum(biases) / 2, 1e-12
    )
    assert torch.allclose(norm(x), expected, atol=1e-5)


def test_others_stay_active_and_the_fusion_can_be_switched() -> None:
    network = with_adapters(bert(), "pfeiffer", "pfeiffer", "pfeiffer")
    AdapterFusion(["a", "b"], name="mixed")(network)
    layer = next(m for m in network.modules() if isinstance(m, AdaptedLayer))
    assert layer.adapter_names == ("a", "b", "c", "mixed")
    assert layer.active_adapters == {"c": 1.0, "mixed": 1.0}
    x = torch.randn(2, layer.in_features)

    def added(**weights: float) -> torch.Tensor:
        layer.use(weights)
        return layer(x) - layer.base_layer(x)

    both = added(c=1.0, mixed=1.0)
    assert torch.allclose(both, added(c=1.0) + added(mixed=1.0), atol=1e-5)
    assert torch.allclose(added(mixed=0.5), 0.5 * added(mixed=1.0), atol=1e-5)
    assert not added().any()


def test_twice_is_once_and_a_spec_rebuilds_it() -> None:
    network = with_adapters(bert(), "pfeiffer", "houlsby")
    surgery = AdapterFusion(["a", "b"])
    surgery(network)
    before = logits(network)
    surgery(network)
    assert torch.equal(logits(network), before)
    other = with_adapters(bert(), "pfeiffer", "houlsby")
    again = from_spec(to_spec(surgery))
    assert again == surgery
    again(other)
    other.load_state_dict(network.state_dict())
    assert torch.equal(logits(other), before)
    with pytest.raises(ValueError, match=r"'fusion' already.*another name"):
        AdapterFusion(["a"])(network)


def test_an_adapter_called_again_stays_frozen_and_off() -> None:
    network = with_adapters(bert(), "pfeiffer")
    AdapterFusion(["a"])(network)
    before = logits(network)
    Adapter("a", "pfeiffer", size=4)(network)
    assert torch.equal(logits(network), before)
    assert not any(p.requires_grad for n, p in network.named_parameters() if ".adapters.a" in n)


def test_copies_checkpoints_and_graphs_compute_the_same() -> None:
    network = with_adapters(bert(), "parallel", "pfeiffer", norms=True)
    AdapterFusion(["a", "b"])(network)
    before = logits(network)
    assert torch.equal(logits(copy.deepcopy(network)), before)
    assert torch.equal(logits(pickle.loads(pickle.dumps(network))), before)
    batch = {**inputs(network), "return_dict": False}
    program = torch.export.export(network, (), batch, strict=False)
    assert torch.allclose(program.module()(**batch)[0], before, atol=1e-5)
    before.sum().backward()
    gradients = [fusion.query.grad.clone() for fusion in fusions(network)]
    network.zero_grad()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    network.train().gradient_checkpointing_enable()
    logits(network).sum().backward()
    for fusion, gradient in zip(fusions(network), gradients, strict=True):
        assert torch.allclose(fusion.query.grad, gradient, atol=1e-6) and gradient.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": []}, "at least one adapter"),
        ({"names": ["a", "a"]}, "each once"),
        ({"names": ["fusion"]}, "not the fusion's own"),
        ({"names": ["a"], "name": "x.y"}, "without a dot"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterFusion(**settings)


def test_adapters_that_are_not_there_are_named() -> None:
    network = with_adapters(bert(), "pfeiffer")
    with pytest.raises(ValueError, match=r"adapters \['x'\] to fuse; it has \['a'\]"):
        AdapterFusion(["a", "x"])(network)
    with pytest.raises(ValueError, match="it has none"):
        AdapterFusion(["a"])(bert())
    assert not fusions(network)
