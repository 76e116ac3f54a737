"""(IA)³ multiplies keys, values and the inside of feed-forward blocks, and starts at one."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lmkit.surgery import NothingMatchedError, from_spec, to_spec
from lmkit.surgery.composition import active_adapters, injected_layers, use_adapters
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.injection import bare_layer
from tests.surgery.adapted import bert, build, inputs, logits, stir
from tests.surgery.lora_formulas import folded_layers

pytest.importorskip("peft", reason="(IA)³ needs the extra peft")
# Of each network how many layers have factors: of key, value and feed-forward block, or fused.
COUNTS = {
    "bert": 6,
    "roberta": 6,
    "distilbert": 6,
    "modernbert": 4,
    "gpt2": 4,
    "llama": 6,
    "t5": 16,
    "bart": 16,
}
EACH_NETWORK = pytest.mark.parametrize("name", COUNTS)


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in network.named_parameters() if p.requires_grad}


def multiply_by_hand(network: nn.Module, plain: nn.Module) -> None:
    """Let hooks on a plain network multiply what the layers of `network` multiply."""
    for place, (layer,) in folded_layers(network).items():
        factor = layer.ia3_l["default"].detach().flatten()

        def enter(module: Any, taken: Any, factor: Tensor = factor) -> Any:
            return (taken[0] * factor,)

        def leave(module: Any, taken: Any, given: Tensor, factor: Tensor = factor) -> Tensor:
            return given * factor

        target = plain.get_submodule(place)
        feeds = any(part in place for part in ("output.dense", "lin2", "mlp.", "DenseRelu", "fc2"))
        if feeds:
            target.register_forward_pre_hook(enter)
        else:
            target.register_forward_hook(leave)


@EACH_NETWORK
@torch.no_grad()  # with gradients torch takes other kernels for frozen weights, in T5
def test_no_logit_changes_and_each_layer_has_its_factors(name: str) -> None:
    network = build(name)
    before = logits(network)
    IA3()(network)
    assert torch.equal(logits(network), before)
    assert len(injected_layers(network)) == COUNTS[name]
    stir(network, "ia3_l")
    assert not torch.allclose(logits(network), before, atol=1e-5)


@EACH_NETWORK
def test_a_network_computes_what_hooks_on_a_plain_one_compute(name: str) -> None:
    network, plain = build(name).double(), build(name).double()
    IA3()(network)
    stir(network.double(), "ia3_l")
    multiply_by_hand(network, plain)
    found = logits(network)
    assert torch.allclose(found, logits(plain), atol=1e-10, rtol=0)
    found.square().sum().backward()
    for weight, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, weight
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 13_824),
        ({"inputs": []}, 6 * 2 * 384),
        ({"targets": []}, 6 * 1536),
        ({"targets": ["encoder.layer.0.*.key"], "inputs": "ffn_output"}, 384 + 6 * 1536),
        ({"targets": "attention_output", "inputs": ["query", "ffn_output"]}, 6 * (768 + 1536)),
    ],
)
def test_the_sizes_are_those_of_the_formulas(settings: dict[str, Any], count: int) -> None:
    # The config of the MiniLM encoder, with fewer words.
    network = bert(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    IA3(head=False, **settings)(network)
    assert sum(p.numel() for p in trained(network).values()) == count
    assert all("ia3_l" in name and (p == 1).all() for name, p in trained(network).items())


@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "t5"])
def test_factors_in_the_weights_compute_the_same(name: str) -> None:
    network, plain = build(name), build(name)
    IA3()(network)
    stir(network, "ia3_l")
    with torch.no_grad():
        for place, (layer,) in folded_layers(network).items():
            target, factor = plain.get_submodule(place), layer.ia3_l["default"].flatten()
            turned = isinstance(target, Conv1D) != layer.is_feedforward
            target.weight.mul_(factor if turned else factor[:, None])
            if not layer.is_feedforward and target.bias is not None:
                target.bias.mul_(factor)
    expected = logits(network)
    assert torch.allclose(logits(plain), expected, atol=1e-5)
    for layer in injected_layers(network).values():
        layer.merge()
    assert torch.allclose(logits(network), expected, atol=1e-5)


def test_factors_of_several_names_are_multiplied_and_switched() -> None:
    network = bert()
    base = logits(network)
    IA3("a")(network)
    IA3("b", targets=["value"])(network)
    stir(network, "ia3_l")
    by_place = folded_layers(network)
    layer = by_place["bert.encoder.layer.0.attention.self.value"][0]
    x = torch.randn(4, 16)
    plain = bare_layer(layer)(x)
    first, second = (layer.ia3_l[name].flatten() for name in "ab")
    for weights, factor in (
        ({"a": 1, "b": 1}, first * second),
        ({"a": 1}, first),
        ({"b": 1, "a": 0}, second),
        ({}, torch.ones(16)),
    ):
        use_adapters(network, weights)
        assert torch.allclose(layer(x), plain * factor, atol=1e-6)
    assert torch.equal(logits(network), base)
    use_adapters(network, {"a": 1, "b": 1})
    logits(network).sum().backward()
    assert all(p.grad is not None for p in trained(network).values())
    with pytest.raises(ValueError, match=r"must be 0 or 1, got \{'a': 0.5\}"):
        use_adapters(network, {"a": 0.5})
    assert active_adapters(network) == {"a": 1.0, "b": 1.0}


def test_the_base_is_as_it_was_after_training() -> None:
    network = build("gpt2")
    IA3()(network)
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW(trained(network).values(), lr=0.1)
    logits(network).square().sum().backward()
    optimizer.step()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) != ("ia3_l" in name), name


def test_twice_is_once_and_settings_of_another_are_refused() -> None:
    network = bert()
    surgery = IA3("a")
    surgery(network)
    stir(network, "ia3_l")
    state = copy.deepcopy(network.state_dict())
    use_adapters(network, {})
    from_spec(to_spec(surgery))(network)
    assert from_spec(to_spec(surgery)) == surgery and not active_adapters(network)
    after = network.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[k], state[k]) for k in state)
    with pytest.raises(ValueError, match=r"an \(IA\)³ adapter 'a' already.*another"):
        IA3("a", targets=["value"])(network)
    assert network.state_dict().keys() == state.keys()


def test_a_copy_is_a_network_of_its_own() -> None:
    network = bert()
    IA3()(network)
    stir(network, "ia3_l")
    before = logits(network)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(logits(other), before)
        stir(other, "ia3_l", "query")
        use_adapters(other, {})
        assert torch.equal(logits(network), before)


@pytest.mark.parametrize(("name", "reentrant"), [("bert", True), ("gpt2", False), ("bart", True)])
def test_gradient_checkpointing_gives_the_same_gradients(name: str, reentrant: bool) -> None:
    network = build(name).double()
    IA3()(network)
    stir(network.double(), "ia3_l")
    network.train()
    gradients = []
    for step in range(2):
        network.zero_grad()
        if step:
            network.enable_input_require_grads()
            network.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        logits(network).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in trained(network).items()})
    assert all(torch.allclose(gradients[0][n], gradients[1][n]) for n in gradients[0])


def test_an_export_of_the_graph_computes_the_same() -> None:
    network = bert()
    IA3()(network)
    stir(network, "ia3_l")
    batch = inputs(network)
    program = torch.export.export(network, (), {**batch, "return_dict": False}, strict=False)
    made = program.module()(**batch, return_dict=False)[0]
    assert torch.allclose(made, logits(network), atol=1e-5)


def test_half_precision_of_the_base_is_that_of_its_factors() -> None:
    network = bert().to(torch.bfloat16)
    before = logits(network)
    IA3()(network)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(network), before)


def test_what_cannot_be_is_refused_and_nothing_is_changed() -> None:
    network = bert()
    with pytest.raises(ValueError, match="IA3 needs layers"):
        IA3(targets=[], inputs=[])
    with pytest.raises(ValueError, match="without a dot"):
        IA3("a.b")
    with pytest.raises(ValueError, match=r"both name .*attention.self.key"):
        IA3(inputs=["key"])(network)
    with pytest.raises(NothingMatchedError, match=r"'kye'.*nearest names.*'key'"):
        IA3(targets=["kye"])(network)
    with pytest.raises(ValueError, match="no linear layer"):
        IA3(targets=["word_embeddings"])(network)
    assert all(p.requires_grad for p in network.parameters()) and not injected_layers(network)
    IA3("a", targets=["key"], inputs=[])(network)
    keys = network.state_dict().keys()
    with pytest.raises(ValueError, match="multiply its result; a further one must do so too"):
        IA3("b", targets=[], inputs=["key"])(network)
    assert network.state_dict().keys() == keys


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'lmkit\[peft\]'"):
        IA3()(bert())
