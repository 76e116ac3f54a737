"""Just what is chosen learns; the choices add up, and one that finds nothing is an error."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

from lmkit.modules.encoder_decoder import settle
from lmkit.surgery import NothingMatchedError, from_spec, to_spec
from lmkit.surgery.adapter import Adapter
from lmkit.surgery.selection import Selection
from tests.surgery.adapted import NETWORKS, bert, build, logits

HEAD = {"classifier.weight", "classifier.bias"}


def trained(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if p.requires_grad}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(("width", "inner", "layers"), [(16, 32, 2), (24, 40, 3)])
def test_bitfit_trains_the_biases_that_the_formula_counts(
    width: int, inner: int, layers: int
) -> None:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    network = bert(**sizes)
    Selection(biases=True, head=False)(network)
    # Query, key, value, output, its norm, both projections, their norm; embeddings' norm, pooler.
    assert count(network) == layers * (7 * width + inner) + 2 * width
    assert all(name.endswith(".bias") for name in trained(network))
    Selection(biases=True)(network)
    assert count(network) == layers * (7 * width + inner) + 2 * width + 3 * width + 3


def test_biases_of_named_modules_are_the_half_that_the_paper_found_enough() -> None:
    network = bert()
    Selection(("query", "intermediate.dense"), biases=True)(network)
    places = ("attention.self.query", "intermediate.dense")
    layers = {f"bert.encoder.layer.{i}.{place}.bias" for i in (0, 1) for place in places}
    assert trained(network) == layers | HEAD


def test_the_bias_over_a_vocabulary_is_left_to_its_head() -> None:
    network = build("masked")
    Selection(biases=True)(network)
    assert "cls.predictions.transform.dense.bias" in trained(network)
    assert not {"cls.predictions.bias", "cls.predictions.decoder.bias"} & trained(network)


@pytest.mark.parametrize("name", ["t5", "gated_t5", "llama", "modernbert"])
def test_an_architecture_without_biases_is_refused_and_left_alone(name: str) -> None:
    # ModernBERT's classifier has one: a head alone is no BitFit.
    network = build(name)
    with pytest.raises(NothingMatchedError, match=r"has no biases .* such as bert, or .* LoRA"):
        Selection(biases=True)(network)
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", [n for n in NETWORKS if "t5" not in n])
def test_the_top_layer_learns_and_nothing_is_computed_below_it(name: str) -> None:
    network = build(name)
    Selection(layers=1, head=False)(network)
    numbers = {"encoder.layer.1", "transformer.layer.1", "layers.1", "h.1"}
    assert trained(network) and all(any(f"{n}." in w for n in numbers) for w in trained(network))
    if name == "bart":
        assert {w.split(".")[1] for w in trained(network)} == {"encoder", "decoder"}
    network.train()
    logits(network).square().sum().backward()
    for weight, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, weight


def test_the_top_layers_of_both_stacks_of_t5_learn() -> None:
    network = build("t5")
    Selection(layers=1)(network)
    assert {w.rsplit(".layer.")[0] for w in trained(network)} == {
        "encoder.block.1",
        "decoder.block.1",
    }


def test_all_layers_are_all_layers() -> None:
    network = bert()
    Selection(layers=2, head=False)(network)
    expected = {n for n, _ in network.named_parameters() if ".layer." in n}
    assert trained(network) == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_norms_are_scales_and_biases_of_each_normalization_of_the_body(name: str) -> None:
    network = build(name)
    Selection(norms=True, head=False)(network)
    body = network.base_model
    expected = {
        f"{prefix}.{weight}"
        for prefix, module in network.named_modules()
        if module in set(body.modules()) and "Norm" in type(module).__name__
        for weight, _ in module.named_parameters(recurse=False)
    }
    assert trained(network) == expected and expected


def test_embeddings_are_those_of_tokens_positions_and_types() -> None:
    network = bert()
    Selection(embeddings=True)(network)
    tables = {f"{kind}_embeddings" for kind in ("word", "position", "token_type")}
    assert trained(network) == {f"bert.embeddings.{table}.weight" for table in tables} | HEAD


def test_the_choices_add_up() -> None:
    network = bert()
    Selection(("pooler",), layers=1, norms=True)(network)
    alone = set()
    for one in (Selection(("pooler",)), Selection(layers=1), Selection(norms=True)):
        each = bert()
        one(each)
        alone |= trained(each)
    assert trained(network) == alone


def test_one_after_the_other_is_both_together_in_either_order() -> None:
    one, other = Selection(biases=True, head=False), Selection(layers=1)
    both = []
    for order in ((one, other), (other, one)):
        network = bert()
        for selection in order:
            selection(network)
        both.append(trained(network))
    assert both[0] == both[1]
    together = bert()
    Selection(layers=1)(together)
    assert trained(together) < both[0]


@pytest.mark.parametrize("order", [1, -1])
def test_with_adapters_the_biases_of_the_base_learn_and_each_part_only_once(order: int) -> None:
    network = bert()
    parts = [Adapter(size=4), Selection(biases=True)]
    for part in parts[::order]:
        part(network)
    names = trained(network)
    alone = bert()
    Selection(biases=True)(alone)
    bare = {name.replace(".base_layer", "") for name in names}
    assert {name for name in bare if ".adapters." not in name} == trained(alone)
    adapters = bert()
    Adapter(size=4)(adapters)
    assert {n for n in names if ".adapters." in n} == trained(adapters) - HEAD


def test_an_adapter_that_a_pattern_names_is_not_what_it_chooses() -> None:
    network = bert()
    Adapter("a", size=4)(network)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    Selection(("layer.1.output.dense",), head=False)(network)
    place = "bert.encoder.layer.1.output.dense.base_layer"
    assert trained(network) == {f"{place}.weight", f"{place}.bias"}


def test_what_no_loss_reaches_stays_frozen() -> None:
    half = BertConfig(**{**NETWORKS["bert"][1].to_diff_dict(), "vocab_size": 99})
    config = EncoderDecoderConfig.from_encoder_decoder_configs(half, copy.deepcopy(half))
    network = EncoderDecoderModel(config)
    settle(network)
    assert network.encoder.pooler.dense.weight.requires_grad is False
    Selection(biases=True)(network)
    assert "encoder.encoder.layer.0.output.dense.bias" in trained(network)
    assert not any("pooler" in name for name in trained(network))
    with pytest.raises(NothingMatchedError, match="chooses only weights that cannot be trained"):
        Selection(("pooler",))(network)


@pytest.mark.parametrize(
    "selection",
    [Selection(biases=True), Selection(("query",), layers=1, norms=True, embeddings=True)],
)
def test_twice_is_once_and_no_logit_changes(selection: Selection) -> None:
    network = bert()
    before, state = logits(network), copy.deepcopy(network.state_dict())
    selection(network)
    once = trained(network)
    from_spec(to_spec(selection))(network)
    assert from_spec(to_spec(selection)) == selection
    assert trained(network) == once
    assert torch.equal(logits(network), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("selection", [Selection(biases=True), Selection(layers=1)])
def test_gradient_checkpointing_gives_the_same_gradients(
    selection: Selection, reentrant: bool
) -> None:
    network = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    selection(network)
    gradients = []
    for step in range(2):
        network.zero_grad()
        if step:
            network.enable_input_require_grads()
            network.gradient_checkpointing_enable({"use_reentrant": reentrant})
        logits(network).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in network.named_parameters() if n in HEAD})
        assert all((p.grad is not None) == p.requires_grad for p in network.parameters())
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-6) for n in HEAD)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patterns": ("qurey",)}, r"no module matches \['qurey'\].*query"),
        # One that matches does not excuse another.
        ({"patterns": ("query", "vlaue")}, r"no module matches \['vlaue'\].*value"),
        ({"patterns": ("qurey",), "biases": True}, "no module matches"),
        ({"patterns": ("*.dropout",)}, "have no weights"),
        ({"patterns": ("word_embeddings",), "biases": True}, "has no biases to train there"),
    ],
)
def test_a_choice_that_finds_nothing_is_an_error(settings: dict[str, Any], message: str) -> None:
    network = bert()
    with pytest.raises(NothingMatchedError, match=message):
        Selection(**settings)(network)
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("settings", [{"norms": True}, {"embeddings": True}, {"layers": 1}])
def test_a_network_without_them_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(NothingMatchedError, match="has no"):
        Selection(**settings)(nn.Linear(2, 2))


def test_more_layers_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers is 3, and bert\.encoder\.layer has 2: give at"):
        Selection(layers=3)(bert())
    with pytest.raises(ValueError, match="layers must be at least 0, got -1"):
        Selection(layers=-1)


def test_one_pattern_may_be_given_as_a_word() -> None:
    assert Selection("query") == Selection(["query"]) == Selection(("query",))
