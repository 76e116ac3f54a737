"""A base is frozen once; what techniques choose after each other adds up."""

from __future__ import annotations

import copy

import pytest
from torch import nn
from transformers import BertForMaskedLM, BertForSequenceClassification

from lmkit.surgery.adapter import Adapter
from lmkit.surgery.selection import Selection
from lmkit.surgery.tuning import (
    freeze_base,
    head_parameters,
    is_tuned_in_part,
    rename_trainable,
    thaw,
    trainable_at_first,
    unfreeze_base,
)
from tests.surgery.adapted import bert, build


def trained(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("head", [True, False])
def test_all_but_the_head_is_frozen(head: bool) -> None:
    network = bert()
    assert not is_tuned_in_part(network)
    freeze_base(network, head)
    assert is_tuned_in_part(network)
    assert trained(network) == ({"classifier.weight", "classifier.bias"} if head else set())


def test_a_second_technique_does_not_freeze_what_the_first_one_trains() -> None:
    network = bert()
    freeze_base(network)
    network.bert.pooler.requires_grad_(True)
    freeze_base(network, head=False)
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= trained(network)


def test_what_was_frozen_before_stays_frozen() -> None:
    network = bert()
    network.bert.pooler.requires_grad_(False)
    network.classifier.weight.requires_grad_(False)
    Selection(biases=True)(network)
    assert "bert.pooler.dense.bias" not in trained(network)
    assert "classifier.weight" not in trained(network) and "classifier.bias" in trained(network)


def test_what_was_trainable_is_remembered_under_wrapped_names_and_in_a_copy() -> None:
    network = bert()
    before = trained(network)
    Adapter("a", size=4)(network)
    for each in (network, copy.deepcopy(network)):
        first = trainable_at_first(each)
        assert {name.replace(".base_layer", "") for name in first} == before
        assert not any(".adapters." in name for name in first)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("bert", {"classifier.weight", "classifier.bias"}),
        ("questions", {"qa_outputs.weight", "qa_outputs.bias"}),
        ("modernbert", {"head.dense.weight", "head.norm.weight", "classifier.weight"}),
        # The head of a language model was trained with it.
        ("masked", set()),
        ("gpt2", set()),
        ("t5", set()),
    ],
)
def test_the_head_is_what_stands_outside_the_base_model(name: str, head: set[str]) -> None:
    found = set(head_parameters(build(name)))
    assert found - {"classifier.bias"} == head - {"classifier.bias"}


def test_what_was_drawn_at_random_learns_only_where_a_base_is_frozen() -> None:
    network = bert()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    names = ["bert.pooler.dense.weight", "bert.encoder.layer.0.output.dense.weight"]
    thaw(network, names)
    assert not trained(network)
    network = bert()
    Adapter("a", "pfeiffer", 4, head=False)(network)
    own = trained(network)
    thaw(network, names)
    wrapped = "bert.encoder.layer.0.output.dense.base_layer.weight"
    assert trained(network) == own | {"bert.pooler.dense.weight", wrapped}


def test_what_takes_the_place_of_a_weight_could_be_trained_as_it_could() -> None:
    network = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2).requires_grad_(False)})
    rename_trainable(network, ["a.weight"], ["a.other"])  # nothing was frozen yet
    freeze_base(network, head=False)
    for name in network:
        network[name].other = nn.Parameter(network[name].weight.detach(), requires_grad=False)
        del network[name].weight
        rename_trainable(network, [f"{name}.weight"], [f"{name}.other"])
    unfreeze_base(network)
    assert trained(network) == {"a.other", "a.bias"}


@pytest.mark.parametrize("cls", [BertForSequenceClassification, BertForMaskedLM])
def test_no_weight_of_the_base_counts_as_its_head(cls: type) -> None:
    network = build("bert" if cls is BertForSequenceClassification else "masked")
    inside = {id(p) for p in network.base_model.parameters()}
    assert not inside & {id(p) for p in head_parameters(network).values()}
