"""LoRA and its kin compute the formulas of their papers, start from the base, and learn alone."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmkit.surgery import NothingMatchedError, from_spec, to_spec
from lmkit.surgery.composition import active_adapters, injected_layers, use_adapters
from lmkit.surgery.lora import VARIANTS, LoRA
from tests.surgery.adapted import bert, build, inputs, logits, stir
from tests.surgery.lora_formulas import added, fold_by_hand, folded_layers

pytest.importorskip("peft", reason="LoRA needs the extra peft")
EACH_VARIANT = pytest.mark.parametrize("variant", VARIANTS)
# The heads of other tasks are trained in tests/callbacks.
EACH_NETWORK = pytest.mark.parametrize(
    "name", ["bert", "roberta", "distilbert", "modernbert", "gpt2", "llama", "t5", "bart"]
)
FROM_BASE = ("pissa", "olora")
HEADS = ("classifier", "qa_outputs", "score", "head.")


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in network.named_parameters() if p.requires_grad}


def minilm() -> nn.Module:
    """Make the shape of the MiniLM encoder, with fewer words."""
    return bert(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )


def lora(variant: str, **settings: Any) -> LoRA:
    defaults = {"rank": 3, "alpha": 5.0, "targets": ["all"]}
    return LoRA(variant=variant, **{**defaults, **settings})


@EACH_VARIANT
@EACH_NETWORK
@torch.no_grad()  # with gradients torch takes other kernels for frozen weights, in T5
def test_no_logit_changes_at_the_start(name: str, variant: str) -> None:
    network = build(name)
    before = logits(network)
    lora(variant)(network)
    if variant in FROM_BASE:
        assert torch.allclose(logits(network), before, atol=1e-5, rtol=0)
    else:
        assert torch.equal(logits(network), before)
    stir(network, "lora_")
    assert not torch.allclose(logits(network), before, atol=1e-3)


@EACH_VARIANT
@EACH_NETWORK
def test_a_network_computes_what_a_plain_one_with_the_formula_in_its_weights_computes(
    name: str, variant: str
) -> None:
    network, plain = build(name).double(), build(name).double()
    surgery = lora(variant)
    surgery(network.double())
    stir(network.double(), "lora_")
    changes = {
        place: added(layer, "default", variant, 5.0, surgery.ranks)
        for place, (layer,) in folded_layers(network).items()
    }
    fold_by_hand(network, plain, changes)
    found = logits(network)
    assert torch.allclose(found, logits(plain), atol=1e-9, rtol=0)
    found.square().sum().backward()
    for weight, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, weight
    assert all("lora_" in n or any(part in n for part in HEADS) for n in trained(network))
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 73_728),
        ({"variant": "rslora"}, 73_728),
        ({"variant": "dora"}, 78_336),
        ({"variant": "pissa"}, 73_728),
        ({"variant": "olora"}, 73_728),
        ({"variant": "adalora"}, 110_736),
        ({"variant": "adalora", "initial_rank": 8}, 12 * (8 * 768 + 8)),
        ({"targets": ["all"], "rank": 2}, 6 * 2 * (4 * 768 + 2 * 1920)),
        ({"targets": ["encoder.layer.0.*.query"]}, 8 * 768),
    ],
)
def test_the_sizes_are_those_of_the_formulas(settings: dict[str, Any], count: int) -> None:
    network = minilm()
    LoRA(head=False, **settings)(network)
    assert sum(p.numel() for p in trained(network).values()) == count
    assert all("lora_" in name for name in trained(network))


def test_a_large_rank_is_scaled_by_its_root() -> None:
    networks = {variant: bert() for variant in ("lora", "rslora")}
    for variant, network in networks.items():
        LoRA(variant=variant, rank=16)(network)
        stir(network, "lora_")
    (one, *_), (other, *_) = (injected_layers(n).values() for n in networks.values())
    x = torch.randn(5, 16)
    small, large = (layer(x) - layer.base_layer(x) for layer in (one, other))
    assert torch.allclose(4 * small, large, atol=1e-5)


def test_the_first_gradient_reaches_the_second_factor_alone() -> None:
    network = bert()
    LoRA()(network)
    logits(network).square().sum().backward()
    for name, parameter in trained(network).items():
        if "lora_" in name:
            assert parameter.grad is not None
            assert parameter.grad.any() == ("lora_B" in name)


@pytest.mark.parametrize("variant", ["lora", "rslora", "adalora"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2"])
def test_weights_that_peft_merges_compute_the_same(name: str, variant: str) -> None:
    network = build(name)
    lora(variant)(network)
    stir(network, "lora_")
    before, base = logits(network), copy.deepcopy(network.state_dict())
    for layer in injected_layers(network).values():
        layer.merge()
    assert torch.allclose(logits(network), before, atol=1e-5)
    with pytest.raises(ValueError, match="the network is folded"):
        use_adapters(network, {})
    for layer in injected_layers(network).values():
        layer.unmerge()
    state = network.state_dict()
    assert all(torch.allclose(state[key], base[key], atol=1e-6) for key in base)


@EACH_VARIANT
def test_the_base_is_as_it_was_after_training(variant: str) -> None:
    network = build("gpt2")
    lora(variant)(network)
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW(trained(network).values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        logits(network).square().sum().backward()
        optimizer.step()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) != (name in trained(network)), name


@EACH_VARIANT
def test_twice_is_once_and_settings_of_another_are_refused(variant: str) -> None:
    network = bert()
    surgery = lora(variant, name="a")
    surgery(network)
    stir(network, "lora_")
    state = copy.deepcopy(network.state_dict())
    use_adapters(network, {"a": 0.5})
    surgery(network)
    assert from_spec(to_spec(surgery)) == surgery
    from_spec(to_spec(surgery))(network)
    after = network.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[k], state[k]) for k in state)
    assert active_adapters(network) == {"a": 0.5}
    with pytest.raises(ValueError, match=r"a LoRA adapter 'a' already.*another\s+name"):
        lora(variant, name="a", alpha=1.0)(network)
    assert network.state_dict().keys() == state.keys()


@EACH_VARIANT
def test_the_state_dict_depends_on_the_spec_alone(variant: str) -> None:
    first, second = bert(), bert()
    for network, mode in ((first, False), (second, True)):
        network.train(mode)
        lora(variant, name="a", dropout=0.1)(network)
        lora("lora", name="b", rank=2)(network)
        assert {module.training for module in network.modules()} == {mode}
    stir(first, "lora_")
    second.load_state_dict(first.state_dict())
    assert torch.equal(logits(first), logits(second.eval()))


@EACH_VARIANT
def test_a_copy_is_a_network_of_its_own(variant: str) -> None:
    network = bert()
    lora(variant)(network)
    stir(network, "lora_")
    before = logits(network)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(logits(other), before)
        stir(other, "lora_", "query")
        use_adapters(other, {"default": 0.5})
        assert torch.equal(logits(network), before)
        lora(variant)(other)
        assert active_adapters(other) == {"default": 0.5}


@EACH_VARIANT
@pytest.mark.parametrize(("name", "reentrant"), [("bert", True), ("gpt2", False), ("bart", True)])
def test_gradient_checkpointing_gives_the_same_gradients(
    name: str, reentrant: bool, variant: str
) -> None:
    network = build(name).double()
    lora(variant)(network)
    stir(network.double(), "lora_")
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    network.config.dropout = network.config.attention_dropout = 0.0
    network.train()
    gradients: list[dict[str, Tensor]] = []
    for step in range(2):
        network.zero_grad()
        if step:
            # As transformers has it for a frozen base under re-entrant checkpoints.
            network.enable_input_require_grads()
            network.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        logits(network).square().sum().backward()
        made = {n: p.grad for n, p in trained(network).items()}
        gradients.append({n: grad.clone() for n, grad in made.items() if grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == trained(network).keys()
    assert all(torch.allclose(gradients[0][n], gradients[1][n]) for n in gradients[0])


@EACH_VARIANT
def test_an_export_of_the_graph_computes_the_same(variant: str) -> None:
    network = bert()
    lora(variant)(network)
    stir(network, "lora_")
    batch = inputs(network)
    program = torch.export.export(network, (), {**batch, "return_dict": False}, strict=False)
    made = program.module()(**batch, return_dict=False)[0]
    assert torch.allclose(made, logits(network), atol=1e-5)


@pytest.mark.parametrize("variant", ["lora", "dora", "pissa", "adalora"])
def test_generation_with_a_cache_is_generation_without(variant: str) -> None:
    network = build("gpt2").double()
    lora(variant)(network)
    stir(network.double(), "lora_")
    ids = inputs(network)["input_ids"][:1]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached, whole = (network.generate(ids, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, whole) and cached.shape[1] == ids.shape[1] + 6


@EACH_VARIANT
def test_half_precision_of_the_base_is_that_of_its_adapters(variant: str) -> None:
    network = bert().to(torch.bfloat16)
    before = logits(network)
    lora(variant)(network)
    assert {p.dtype for p in trained(network).values()} == {torch.bfloat16}
    assert not any("ranknum" in weight for weight in trained(network))
    assert logits(network).dtype == torch.bfloat16
    assert torch.allclose(logits(network), before, atol=2e-2)


@EACH_VARIANT
def test_dropout_acts_on_the_adapter_in_training_alone(variant: str) -> None:
    network = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    lora(variant, dropout=0.5)(network)
    use_adapters(network, {})
    base = logits(network)
    use_adapters(network, {"default": 1.0})
    stir(network, "lora_")
    assert torch.equal(logits(network), logits(network))
    network.train()
    assert not torch.equal(logits(network), logits(network))
    use_adapters(network, {})
    assert torch.equal(logits(network), base)


def test_without_the_head_only_the_adapter_learns() -> None:
    network = bert()
    LoRA(head=False)(network)
    assert all("lora_" in name for name in trained(network))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a.b"}, "without a dot"),
        ({"name": "train"}, "torch has no other use for"),
        ({"variant": "loha"}, "variant must be one of lora, rslora"),
        ({"variant": "pissa_niter_4"}, "its fast decomposition is random"),
        ({"targets": []}, "targets must name linear layers"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": 2.5}, "rank must be a whole number, got 2.5"),
        ({"rank": "8"}, "rank must be a whole number, got '8'"),
        ({"rank": True}, "rank must be a whole number, got True"),
        ({"variant": "adalora", "initial_rank": 12.5}, "initial_rank must be a whole number"),
        ({"alpha": float("inf")}, "alpha must be a finite number, got inf"),
        ({"dropout": float("nan")}, "dropout must be a finite number"),
        ({"alpha": 0.0}, "alpha must be over 0"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"initial_rank": 12}, "initial_rank is for variant='adalora'"),
        ({"variant": "adalora", "rank": 8, "initial_rank": 7}, "at least rank=8; got 7"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRA(**settings)


@pytest.mark.parametrize("variant", ["lora", "dora", "adalora"])
def test_more_ranks_than_a_layer_can_have_are_refused(variant: str) -> None:
    network = bert()
    width = network.config.hidden_size
    message = rf"rank is 5000, and bert.*query turns {width} .* a rank of at most {width}"
    with pytest.raises(ValueError, match=message):
        LoRA(rank=5000, variant=variant)(network)
    assert all(p.requires_grad for p in network.parameters()) and not injected_layers(network)
    LoRA(rank=width, variant=variant)(network)


def test_a_pattern_that_matches_nothing_names_what_is_near() -> None:
    network = bert()
    for targets, message in (
        (["qeury"], r"'qeury'.*nearest names.*'query'"),
        (["query", "dens"], r"\['dens'\]; nearest names.*'dense'"),
        (["LayerNorm"], r"'LayerNorm' matches .*\(LayerNorm\), and no linear layer"),
    ):
        with pytest.raises(NothingMatchedError, match=message):
            LoRA(targets=targets)(network)
    assert all(p.requires_grad for p in network.parameters()) and not injected_layers(network)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    network = bert()
    with pytest.raises(ImportError, match=r"pip install 'lmkit\[peft\]'"):
        LoRA()(network)
    assert all(p.requires_grad for p in network.parameters())
