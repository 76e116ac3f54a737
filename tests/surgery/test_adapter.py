"""Adapters start from the network as it is, have the sizes of the papers, and learn alone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from lmkit.surgery import NothingMatchedError, from_spec, to_spec
from lmkit.surgery.adapter import KINDS, Adapter
from lmkit.surgery.bottleneck import AdaptedLayer
from lmkit.surgery.norm_shift import Shifted
from lmkit.surgery.sites import base_name
from tests.surgery.adapted import NETWORKS, bert, build, inputs, logits, stir

EACH_KIND = pytest.mark.parametrize("kind", KINDS)
EACH_NETWORK = pytest.mark.parametrize("name", NETWORKS)


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in network.named_parameters() if p.requires_grad}


def adapted_layers(network: nn.Module) -> dict[str, AdaptedLayer]:
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, AdaptedLayer) and module.adapters
    }


def use(network: nn.Module, **weights: float) -> None:
    for module in network.modules():
        if isinstance(module, AdaptedLayer | Shifted):
            module.use(weights)


@EACH_KIND
@EACH_NETWORK
@torch.no_grad()  # with gradients torch takes other kernels for frozen weights, in T5
def test_no_logit_changes_and_each_block_has_its_adapter(name: str, kind: str) -> None:
    network = build(name)
    before = logits(network)
    Adapter(kind=kind, size=4)(network)
    assert torch.equal(logits(network), before)
    _, _, blocks, attentions = NETWORKS[name]
    both = kind in ("houlsby", "compacter")
    assert len(adapted_layers(network)) == blocks + (attentions if both else 0)
    stir(network)
    assert not torch.allclose(logits(network), before, atol=1e-3)


@EACH_KIND
@EACH_NETWORK
def test_every_weight_that_is_trained_has_a_gradient_and_no_other(name: str, kind: str) -> None:
    network = build(name)
    Adapter(kind=kind, size=4)(network)
    stir(network)
    logits(network).square().sum().backward()
    for weight, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, weight
    own = (".adapters.", "classifier", "qa_outputs", "score", "head.")
    assert all(any(part in weight for part in own) for weight in trained(network))


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"kind": "houlsby", "size": 24}, 226_080),
        ({"kind": "houlsby", "size": 64}, 595_200),
        ({"kind": "pfeiffer", "size": 64}, 297_600),
        ({"kind": "parallel", "size": 64}, 297_600),
        # n^3 for the rule, and 2r(m + d) + m + d for each of 12 adapters.
        ({"kind": "compacter", "size": 24}, 4**3 + 12 * (2 * 408 + 408)),
        ({"kind": "compacter", "size": 48, "divisions": 8, "rank": 2}, 512 + 12 * 5 * 432),
    ],
)
def test_the_sizes_are_those_of_the_formulas(settings: dict[str, Any], count: int) -> None:
    # The config of the MiniLM encoder, with fewer words.
    network = bert(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    Adapter(norms=False, head=False, **settings)(network)
    assert sum(p.numel() for p in trained(network).values()) == count


def test_norms_of_houlsby_add_two_vectors_for_each_normalization() -> None:
    plain, shifted = bert(), bert()
    Adapter(norms=False)(plain)
    Adapter()(shifted)
    more = trained(shifted).keys() - trained(plain).keys()
    # Two in each of two layers, and one behind the embeddings.
    assert len(more) == 10 and all("LayerNorm" in name for name in more)
    assert sum(trained(shifted)[name].numel() for name in more) == 10 * 16


def test_the_rule_of_a_compacter_is_one_for_all_layers() -> None:
    network = bert()
    Adapter(kind="compacter", size=4)(network)
    layers = adapted_layers(network).values()
    rules = {id(layer.adapters["default"].rule) for layer in layers}
    assert len(rules) == 1 and len(layers) == 4
    twin = copy.deepcopy(network)
    rules |= {id(layer.adapters["default"].rule) for layer in adapted_layers(twin).values()}
    assert len(rules) == 2
    stir(network)
    twin.load_state_dict(network.state_dict())
    assert torch.equal(logits(network), logits(twin))


def added_by_hand(network: nn.Module, reference: nn.Module, kind: str) -> Tensor:
    """Return the logits of `reference` with the adapters of `network` put in by hooks."""
    entered: dict[str, Tensor] = {}
    for name, layer in adapted_layers(network).items():
        adapter = layer.adapters["default"]

        def add(module: Any, taken: Any, y: Tensor, name: str = name, a: Any = adapter) -> Tensor:
            x = entered[name] if kind == "parallel" else y
            return y + a.scale * (ACT2FN["gelu"](x @ a.down.T + a.down_bias) @ a.up.T + a.up_bias)

        def enter(module: Any, taken: Any, name: str = name) -> None:
            entered[name] = taken[0]

        reference.get_submodule(name).register_forward_hook(add)
        first = name.replace("mlp.down_proj", "mlp.gate_proj").replace("c_proj", "c_fc")
        first = first.replace(".output.dense", ".intermediate.dense").replace("fc2", "fc1")
        if kind == "parallel":
            assert first != name
            reference.get_submodule(first).register_forward_pre_hook(enter)
    return logits(reference)


@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "bart"])
def test_a_network_computes_what_hooks_on_a_plain_one_compute(name: str, kind: str) -> None:
    network, reference = build(name).double(), build(name).double()
    Adapter(kind=kind, size=4, scale=1.5, norms=False)(network)
    network.double()
    stir(network)
    assert torch.allclose(
        logits(network), added_by_hand(network, reference, kind), atol=1e-10, rtol=0
    )


def test_moved_norms_are_norms_with_other_weights() -> None:
    network, reference = bert().double(), bert().double()
    Adapter(kind="pfeiffer", norms=True)(network)
    stir(network, "LayerNorm.adapters")
    use(network, default=0.5)
    own = dict(reference.named_parameters())
    with torch.no_grad():
        for name, delta in network.named_parameters():
            if "LayerNorm.adapters" in name:
                own[name.replace(".adapters.default", "")].add_(0.5 * delta)
    assert torch.allclose(logits(network), logits(reference), atol=1e-10, rtol=0)


def test_the_base_is_as_it_was_when_all_adapters_are_off() -> None:
    network = build("gpt2")
    before, weights = logits(network), copy.deepcopy(network.state_dict())
    Adapter()(network)
    stir(network)
    optimizer = torch.optim.AdamW(trained(network).values(), lr=0.1)
    logits(network).square().sum().backward()
    optimizer.step()
    state = {base_name(name): tensor for name, tensor in network.state_dict().items()}
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert not torch.allclose(logits(network), before, atol=1e-3)
    use(network)
    assert torch.equal(logits(network), before)


@EACH_KIND
def test_adapters_of_several_names_are_summed_with_their_weights(kind: str) -> None:
    network = bert()
    Adapter("a", kind, size=4)(network)
    Adapter("b", "pfeiffer", size=8)(network)
    layer = next(m for m in adapted_layers(network).values() if len(m.adapters) == 2)
    assert layer.adapter_names == ("a", "b") and layer.active_adapters == {"a": 1.0, "b": 1.0}
    stir(network)
    seen: dict[str, Tensor] = {}
    x, entered = torch.randn(3, layer.in_features), torch.randn(3, 16)

    def run(**weights: float) -> Tensor:
        use(network, **weights)
        if layer.takes is not None:
            layer.takes.held = entered
        return layer(x)

    bare = run()
    assert torch.equal(bare, layer.base_layer(x))
    seen = {name: run(**{name: 1.0}) - bare for name in ("a", "b")}
    both = run(a=0.25, b=-2.0, c=1.0)
    assert torch.allclose(both, bare + 0.25 * seen["a"] - 2.0 * seen["b"], atol=1e-5)
    assert "c" not in layer.active_adapters


def test_switching_trains_and_freezes_nothing() -> None:
    network = bert()
    Adapter("a")(network)
    before = set(trained(network))
    use(network)
    assert set(trained(network)) == before


@EACH_KIND
def test_twice_is_once_and_settings_of_another_are_refused(kind: str) -> None:
    network = bert()
    surgery = Adapter("a", kind, size=4)
    surgery(network)
    stir(network)
    state = copy.deepcopy(network.state_dict())
    use(network, a=0.5)
    surgery(network)
    assert from_spec(to_spec(surgery)) == surgery
    from_spec(to_spec(surgery))(network)
    after = network.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[k], state[k]) for k in state)
    assert all(m.active_adapters == {"a": 0.5} for m in adapted_layers(network).values())
    with pytest.raises(ValueError, match=r"an adapter 'a' already.*another name"):
        Adapter("a", kind, size=8)(network)
    assert network.state_dict().keys() == state.keys()


@EACH_KIND
def test_the_state_dict_depends_on_the_spec_alone(kind: str) -> None:
    first, second = bert(), bert()
    for network, modes in ((first, False), (second, True)):
        network.train(modes)
        Adapter("a", kind, size=4, dropout=0.1)(network)
        Adapter("b", "houlsby", size=2)(network)
    stir(first)
    second.load_state_dict(first.state_dict())
    assert torch.equal(logits(first), logits(second.eval()))
    assert not any(module.training for module in first.modules())


@EACH_KIND
def test_a_copy_is_a_network_of_its_own(kind: str) -> None:
    network = bert()
    Adapter(kind=kind, size=4)(network)
    stir(network)
    for layer in network.modules():
        if isinstance(layer, AdaptedLayer) and layer.gives:
            # A tensor that an interrupted step has left behind.
            layer.gives.held = torch.ones(1, requires_grad=True) * 2
    twin, thawed = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
    before = logits(network)
    for other in (twin, thawed):
        assert torch.equal(logits(other), before)
        stir(other, ".adapters.", "query")
        use(other)
        assert torch.equal(logits(network), before)


@EACH_KIND
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["bert", "gpt2", "bart"])
def test_gradient_checkpointing_gives_the_same_gradients(
    name: str, reentrant: bool, kind: str
) -> None:
    network = build(name)
    Adapter(kind=kind, size=4, norms=True)(network)
    stir(network)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    network.config.dropout = network.config.attention_dropout = 0.0
    network.train()
    gradients = []
    for step in range(2):
        network.zero_grad()
        if step:
            # As transformers has it for a frozen base under re-entrant checkpoints.
            network.enable_input_require_grads()
            network.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        logits(network).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in trained(network).items()})
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-5) for n in gradients[0])


@EACH_KIND
def test_an_export_of_the_graph_computes_the_same(kind: str) -> None:
    network = bert()
    Adapter("a", kind, size=4)(network)
    Adapter("b", kind, size=4)(network)
    stir(network)
    batch = inputs(network)
    program = torch.export.export(network, (), {**batch, "return_dict": False}, strict=False)
    made = program.module()(**batch, return_dict=False)[0]
    assert torch.allclose(made, logits(network), atol=1e-5)


@EACH_KIND
def test_generation_with_a_cache_is_generation_without(kind: str) -> None:
    network = build("gpt2").double()
    Adapter(kind=kind, size=4)(network)
    stir(network.double())
    ids = inputs(network)["input_ids"][:1]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached, whole = (network.generate(ids, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, whole) and cached.shape[1] == ids.shape[1] + 6


def test_half_precision_of_the_base_is_that_of_its_adapters() -> None:
    network = bert().to(torch.bfloat16)
    Adapter()(network)
    Adapter("compact", "compacter", size=4)(network)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert logits(network).dtype == torch.bfloat16


def test_dropout_of_an_adapter_acts_in_training_alone() -> None:
    network = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    Adapter(dropout=0.5)(network)
    stir(network)
    assert torch.equal(logits(network), logits(network))
    network.train()
    assert not torch.equal(logits(network), logits(network))


def test_targets_name_the_projections_of_a_strange_network() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(6, 9), nn.Linear(9, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.enter(x).relu())

    x = torch.randn(2, 6)
    for kind, targets in (("pfeiffer", ["leave"]), ("parallel", ["enter", "leave"])):
        network = nn.Sequential(Block(), Block())
        before = network(x)
        with pytest.raises(NothingMatchedError, match=r"ffn_output.*enter, leave"):
            Adapter(kind=kind, size=2)(network)
        assert all(p.requires_grad for p in network.parameters())
        Adapter(kind=kind, size=2, targets=targets)(network)
        assert torch.equal(network(x), before)
        assert {name.split(".")[1] for name in adapted_layers(network)} == {"leave"}
        width = adapted_layers(network)["0.leave"].adapters["default"].down.shape[1]
        assert width == 6


def test_a_base_without_known_names_is_refused_and_left_alone() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(NothingMatchedError, match="attention_output"):
        Adapter()(network)
    with pytest.raises(NothingMatchedError, match="no normalization"):
        Adapter(kind="pfeiffer", targets=["0"], norms=True)(network)
    assert isinstance(network[0], nn.Linear) and network[0].weight.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a.b"}, "without a dot"),
        ({"name": "train"}, "torch has no other use for"),
        ({"name": ""}, "got ''"),
        ({"kind": "huolsby"}, "kind must be one of houlsby"),
        ({"activation": "geglu"}, "activation must be one of gelu"),
        ({"size": 0}, "size must be at least 1"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"size": 4.0}, "size must be a whole number, got 4.0"),
        ({"scale": float("nan")}, "scale must be a finite number, got nan"),
        ({"scale": float("inf")}, "scale must be a finite number, got inf"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"kind": "parallel", "targets": ["fc2"]}, "are two"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adapter(**settings)


def test_a_head_that_is_named_is_refused() -> None:
    network = bert()
    with pytest.raises(ValueError, match=r"targets name classifier of the head.*of layers"):
        Adapter(kind="pfeiffer", size=2, targets=["ffn_output", "classifier"])(network)
    assert not adapted_layers(network)


@pytest.mark.parametrize("settings", [{"size": 6}, {"size": 15, "divisions": 5}])
def test_divisions_that_do_not_divide_a_width_are_refused(settings: dict[str, int]) -> None:
    network = bert()
    with pytest.raises(ValueError, match=r"does not divide the widths \[(6|16)\]"):
        Adapter(kind="compacter", **settings)(network)
    assert not adapted_layers(network)


@EACH_KIND
def test_adapters_and_lora_stack_in_both_orders(kind: str) -> None:
    peft = pytest.importorskip("peft")
    results = []
    for first in ("lora", "adapter"):
        network = bert()
        Adapter("b", "pfeiffer", size=2)(network)
        before = logits(network)
        if first == "adapter":
            Adapter("a", kind, size=4)(network)
        linear = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
        ends = ("output.dense", "intermediate.dense", "query")
        targets = [name for name in linear if base_name(name).endswith(ends)]
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=targets, r=2), network)
        network.eval()
        if first == "lora":
            Adapter("a", kind, size=4)(network)
        assert torch.equal(logits(network), before)
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        stir(network, ".adapters.", "lora_")
        assert not torch.allclose(logits(network), before, atol=1e-2)
        results.append({name: p.shape for name, p in network.named_parameters()})
    assert results[0] == results[1] and any("lora_A" in name for name in results[0])


def test_a_head_is_no_layer() -> None:
    # RoBERTa's head ends in a projection that is called as BART's attention calls its own.
    network = build("roberta")
    Adapter()(network)
    assert all(".layer." in name for name in adapted_layers(network))


def test_without_the_head_only_the_adapter_learns() -> None:
    network = bert()
    Adapter(head=False)(network)
    assert all(".adapters." in name for name in trained(network))
