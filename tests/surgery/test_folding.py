"""What adapters add is computed into the base, and taken out again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, T5ForConditionalGeneration

from lmkit.surgery.adapter import Adapter
from lmkit.surgery.adapter_fusion import AdapterFusion
from lmkit.surgery.composition import adapters_of, use_adapters
from lmkit.surgery.folding import fold, is_folded, merge, unfold
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.lora import VARIANTS, LoRA
from lmkit.surgery.norm_shift import Shift, shift
from lmkit.surgery.prefix_tuning import PrefixTuning
from lmkit.surgery.prompt_tuning import PromptTuning
from tests.surgery.adapted import NETWORKS, build, logits

#: Layers by name of a network, since roles are tested elsewhere: of attention, and a last one.
TARGETS: dict[str, tuple[list[str], list[str]]] = {
    "bert": (["query", "value"], ["output.dense"]),
    "tagging": (["query", "value"], ["[01].output.dense"]),
    "roberta": (["query", "value"], ["[01].output.dense"]),
    "modernbert": (["Wqkv"], ["mlp.Wo"]),
    "gpt2": (["c_attn"], ["mlp.c_proj"]),
    "llama": (["q_proj", "v_proj"], ["down_proj"]),
    "t5": (["q", "v"], ["wo"]),
}


@torch.no_grad()
def train(network: nn.Module) -> None:
    """Give the weights that would learn other values, and leave what PiSSA remembers."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            size = 0.1 if "ia3" in name or "magnitude" in name else 0.3
            parameter += size * torch.randn(parameter.shape, generator=generator)


def lora(name: str, variant: str = "lora", word: str = "default") -> LoRA:
    return LoRA(word, TARGETS[name][0], rank=3, alpha=5, variant=variant, dropout=0.1)


@torch.no_grad()
def said(network: nn.Module) -> Tensor:
    return logits(network.eval())


def check_merge(network: Any, tolerance: float = 1e-5) -> None:
    """Fold, unfold and merge, and hold what comes out against the plain architecture."""
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = said(network)
    fold(network)
    fold(network)
    assert is_folded(network) and (said(network) - before).abs().max() < tolerance
    unfold(network)
    assert not is_folded(network) and torch.equal(said(network), before)
    assert all(torch.equal(tensor, own[name]) for name, tensor in network.state_dict().items())
    merge(network)
    plain = type(network)(network.config)
    assert not adapters_of(network)
    assert [*network.state_dict()] == [*plain.state_dict()]
    assert {n: type(m) for n, m in network.named_modules()} == {
        n: type(m) for n, m in plain.named_modules()
    }
    plain.load_state_dict(network.state_dict())
    assert (said(plain) - before).abs().max() < tolerance
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", TARGETS)
def test_a_merged_network_computes_the_same_in_the_plain_architecture(
    name: str, variant: str
) -> None:
    network = build(name)
    plain = said(network)
    lora(name, variant)(network)
    train(network)
    assert (said(network) - plain).abs().max() > 1e-3
    check_merge(network)


@pytest.mark.parametrize("name", TARGETS)
def test_gains_are_merged_into_weights_and_biases(name: str) -> None:
    network = build(name)
    attention, last = TARGETS[name]
    IA3(targets=attention, inputs=last)(network)
    with torch.no_grad():
        for word, parameter in network.named_parameters():
            if word.endswith("bias") and parameter.dim() == 1:
                parameter.normal_()  # networks start without
    train(network)
    check_merge(network)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_several_adapters_are_merged_with_their_weights(name: str) -> None:
    network = build(name)
    words = {"pissa": 0.4, "olora": 0.0, "lora": 0.7, "dora": -0.5, "adalora": 1.5}
    for variant in words:
        lora(name, variant, f"its_{variant}")(network)
    IA3("gain", *TARGETS[name])(network)
    lora(name, "lora", "outside")(network)
    train(network)
    use_adapters(network, {f"its_{k}": v for k, v in words.items()} | {"gain": 1, "outside": 0.3})
    check_merge(network)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_base_is_what_is_left_when_nothing_is_active(name: str) -> None:
    network = build(name)
    own = copy.deepcopy(network.state_dict())
    lora(name, "pissa", "a")(network)
    Adapter("b", size=4, targets=TARGETS[name][1])(network)
    PromptTuning("c", length=2)(network)
    PrefixTuning("d", length=2)(network)
    train(network)
    use_adapters(network, {})
    merge(network)
    assert [*network.state_dict()] == [*own]
    body = {n: t for n, t in own.items() if not n.startswith("classifier")}
    assert all((network.state_dict()[n] - t).abs().max() < 1e-6 for n, t in body.items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())


def test_peft_merges_to_the_same_weights() -> None:
    peft = pytest.importorskip("peft")
    for variant in ("lora", "rslora", "dora", "adalora"):
        ours, theirs = build("bert"), build("bert")
        lora("bert", variant)(ours)
        common = {"lora_alpha": 5, "target_modules": ["query", "value"]}
        config = (
            peft.AdaLoraConfig(init_r=5, target_r=3, total_step=1, **common)
            if variant == "adalora"
            else peft.LoraConfig(
                r=3, use_rslora=variant == "rslora", use_dora=variant == "dora", **common
            )
        )
        wrapped = peft.get_peft_model(theirs, config)
        train(ours)
        state = {f"base_model.model.{n}": t for n, t in ours.state_dict().items()}
        wrapped.load_state_dict(state)
        merged = wrapped.merge_and_unload().state_dict()
        merge(ours)
        for name, tensor in ours.state_dict().items():
            assert (merged[name] - tensor).abs().max() < 1e-6, (variant, name)


def test_half_precision_is_computed_in_full() -> None:
    network = build("bert")
    lora("bert")(network)
    train(network)
    network.to(torch.bfloat16)
    layer: Any = network.get_submodule("bert.encoder.layer.0.attention.self.query")
    factors = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
    whole = layer.base_layer.weight.float() + 5 / 3 * factors
    merge(network)
    query: Any = network.get_submodule("bert.encoder.layer.0.attention.self.query")
    assert query.weight.dtype == torch.bfloat16
    assert torch.equal(query.weight, whole.to(torch.bfloat16))


def test_moved_normalizations_are_folded_in() -> None:
    network = build("llama")
    for name in ("model.layers.0.input_layernorm", "model.norm"):
        moved = shift(network, name)
        moved.adapters["a"] = Shift(moved.base_layer)
        moved.use({"a": 0.5})
        nn.init.normal_(moved.adapters["a"].weight)
    check_merge(network)


@pytest.mark.parametrize(
    ("surgery", "reason"),
    [
        (Adapter("b", size=4), r"'b' is a bottleneck adapter.*use only lora"),
        (AdapterFusion(["b"]), "'fusion' is a fusion"),
        (PromptTuning("b", length=2), "'b' is made of tokens in front of the text"),
        (PrefixTuning("b", length=2), "'b' is made of tokens"),
    ],
)
def test_what_is_no_change_of_weights_is_refused_and_nothing_changes(
    surgery: Any, reason: str
) -> None:
    network = build("bert")
    lora("bert", word="lora")(network)
    if isinstance(surgery, AdapterFusion):
        Adapter("b", size=4)(network)
    surgery(network)
    train(network)
    before, keys = said(network), [*network.state_dict()]
    for change in (fold, merge):
        with pytest.raises(ValueError, match=reason):
            change(network)
    assert torch.equal(said(network), before) and [*network.state_dict()] == keys
    use_adapters(network, {"lora": 1})
    check_merge(network)


def test_there_has_to_be_an_adapter() -> None:
    with pytest.raises(ValueError, match="no adapters to merge"):
        merge(build("bert"))


def test_a_wrapper_from_elsewhere_is_named() -> None:
    class Foreign(nn.Module):
        def __init__(self, base_layer: nn.Module) -> None:
            super().__init__()
            self.base_layer = base_layer

    network = build("bert")
    lora("bert")(network)
    network.bert.pooler.dense = Foreign(network.bert.pooler.dense)
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense is wrapped by a Foreign"):
        merge(network)


def test_a_folded_network_takes_no_other_adapters() -> None:
    network = build("bert")
    lora("bert")(network)
    fold(network)
    with pytest.raises(ValueError, match="unfold it before"):
        use_adapters(network, {})
    twin = copy.deepcopy(network)
    unfold(twin)
    assert is_folded(network) and not is_folded(twin)


def test_a_tied_head_is_parted_from_the_embeddings_where_the_config_can_say_so() -> None:
    _, config, *_ = NETWORKS["llama"]
    torch.manual_seed(0)
    tied = LlamaForCausalLM(type(config)(**{**config.to_dict(), "tie_word_embeddings": True}))
    gpt2 = GPT2LMHeadModel(GPT2Config(**NETWORKS["gpt2"][1].to_diff_dict()))
    for network in (tied, gpt2):
        LoRA(targets=["lm_head"], rank=2)(network)
        train(network)
        before, table = said(network), network.get_input_embeddings().weight.clone()
        fold(network)
        assert torch.equal(network.get_input_embeddings().weight, table)
        assert (said(network) - before).abs().max() < 1e-5
        unfold(network)
        check_merge(network)
        assert not network.config.tie_word_embeddings
        assert torch.equal(network.get_input_embeddings().weight, table)


def test_a_tied_head_that_has_to_stay_tied_is_refused() -> None:
    network = T5ForConditionalGeneration(NETWORKS["t5"][1])
    LoRA(targets=["lm_head"], rank=2)(network)
    train(network)
    with pytest.raises(ValueError, match="are one weight, and would all be"):
        merge(network)
    before = said(network)
    fold(network)
    assert (said(network) - before).abs().max() < 1e-5
