"""Projections are found in the layers of many architectures, and never in a head."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoConfig,
    BartForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from lmkit.surgery import NothingMatchedError
from lmkit.surgery.adapter import Adapter
from lmkit.surgery.sites import ROLES, base_name, find_sites, match_sites
from tests.surgery.adapted import _BART, NETWORKS, bert, build

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
MORE = {
    "albert": (AlbertForSequenceClassification, AlbertConfig(**_SIZES, embedding_size=8)),
    "deberta": (DebertaV2ForSequenceClassification, DebertaV2Config(**_SIZES)),
    "gpt_neox": (GPTNeoXForSequenceClassification, GPTNeoXConfig(**_SIZES)),
    "mpnet": (MPNetForSequenceClassification, MPNetConfig(**_SIZES)),
    "vit": (ViTForImageClassification, ViTConfig(**_SIZES, image_size=8, patch_size=4)),
}


def make(name: str) -> nn.Module:
    if name in NETWORKS:
        return build(name)
    cls, config = MORE[name]
    config.vocab_size = 99
    return cls(config)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", [*NETWORKS, *MORE])
def test_each_layer_has_each_role(name: str, role: str) -> None:
    network = make(name)
    found = find_sites(network, [role])
    # ALBERT has one layer, which is run twice.
    layers = 1 if name == "albert" else 2
    two_stacks = name in ("t5", "gated_t5", "bart")
    attends = role in ("query", "key", "value", "attention_output")
    expected = layers * (3 if attends else 2) if two_stacks else layers
    if role == "ffn_input" and name in ("llama", "gated_t5"):
        expected *= 2  # the gate, and what it gates
    assert len(found) == expected
    assert all(re.search(r"\.\d+\.", word) for word in found)


@pytest.mark.parametrize("name", ["roberta", "bart"])
def test_a_projection_of_a_head_is_none_of_a_layer(name: str) -> None:
    network = build("roberta")
    head = "classifier.out_proj"
    if name == "bart":
        config = AutoConfig.for_model("bart", **_BART)
        network, head = BartForSequenceClassification(config), "classification_head.out_proj"
    assert isinstance(network.get_submodule(head), nn.Linear)
    assert head not in find_sites(network, ["attention_output"])
    assert head not in match_sites(network, ["all"])
    # Named, it is taken.
    assert list(match_sites(network, [head])) == [head]


def test_what_is_wrapped_is_found_where_it_was() -> None:
    network = bert()
    before = list(match_sites(network, ["all"]))
    Adapter(size=4)(network)
    assert list(match_sites(network, ["all"])) == before


def test_a_network_without_layers_is_itself_one() -> None:
    layer = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "fc1": nn.Linear(2, 2)})
    assert list(find_sites(layer, ["ffn_input", "query"])) == ["q_proj", "fc1"]


def test_roles_and_patterns_may_be_mixed_and_come_in_the_order_of_the_network() -> None:
    network = bert()
    found = list(match_sites(network, ["layer.0.output.dense", "query", "classifier"]))
    assert found == [
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.0.output.dense",
        "bert.encoder.layer.1.attention.self.query",
        "classifier",
    ]


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"no role 'qurey'; there are query, key"):
        find_sites(bert(), ["qurey"])
    network = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(NothingMatchedError, match="known as value; it has the linear layers 0"):
        find_sites(network, ["value"])
    with pytest.raises(NothingMatchedError, match=r"'all' stands for query, key.*known as query"):
        match_sites(network, ["all"])
    with pytest.raises(NothingMatchedError, match=r"'LayerNorm' matches .*and no linear layer"):
        match_sites(bert(), ["LayerNorm"])


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("a.base_layer.weight", "a.weight"),
        ("a.base_layer.base_layer.bias", "a.bias"),
        ("a.base_layer", "a"),
        ("base_layers.weight", "base_layers.weight"),
    ],
)
def test_the_name_that_a_weight_had(name: str, base: str) -> None:
    assert base_name(name) == base
