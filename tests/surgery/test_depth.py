"""Depth of parameters: embeddings below, layers in order, the head on top."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lmkit.modules.optimizer import parameter_groups
from lmkit.surgery.depth import layer_stacks, parameter_depths
from tests import tiny


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "modernbert", "gpt2"])
def test_layers_are_numbered_from_the_embeddings_to_the_head(name: str) -> None:
    settings = dict((tiny.MASKED | tiny.CAUSAL)[name])
    settings["pad_token_id"] = 0
    config = AutoConfig.for_model(settings.pop("model_type"), vocab_size=50, **settings)
    network = AutoModelForSequenceClassification.from_config(config)
    (stack,) = layer_stacks(network).values()
    depths = parameter_depths(network)
    assert set(depths) == {n for n, _ in network.named_parameters()}
    assert set(depths.values()) == set(range(len(stack) + 2))
    head = {n for n in depths if not n.startswith(f"{network.base_model_prefix}.")}
    assert head and all(depths[n] == len(stack) + 1 for n in head)
    embeddings = {n for n in depths if "embeddings.word" in n or "wte" in n or "tok_emb" in n}
    assert embeddings and all(depths[n] == 0 for n in embeddings)


def test_a_layer_learns_slower_than_the_one_above() -> None:
    network = nn.Sequential(
        nn.Embedding(3, 2), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), nn.Linear(2, 1)
    )
    groups = parameter_groups(network, 0.1, learning_rate=1.0, layer_decay=0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = [rates[id(p)] for p in network.parameters()]
    assert found == [0.125, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    plain = parameter_groups(network, 0.1, learning_rate=1.0, layer_decay=1.0)
    assert len(plain) == 2 and all("lr" not in group for group in plain)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_some_parameters_have_rates_of_their_own(decay: float) -> None:
    network = nn.Sequential(nn.Embedding(3, 2), nn.ModuleList([nn.Linear(2, 2)]), nn.Linear(2, 1))
    own = {network[1][0].weight: 7.0, network[2].bias: 7.0, network[2].weight: 9.0}
    groups = parameter_groups(network, 0.1, 1.0, decay, own)
    found = {
        p: (group.get("lr"), group["weight_decay"]) for group in groups for p in group["params"]
    }
    assert {p: found[p] for p in own} == dict(zip(own, [(7, 0.1), (7, 0.0), (9, 0.1)], strict=True))
    rest = [found[p][0] for p in network.parameters() if p not in own]
    assert rest == ([0.25, 0.5] if decay < 1 else [None, None])


@pytest.mark.parametrize("decay", [0.0, 1.5, -1.0])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="layer_decay must lie in"):
        parameter_groups(nn.Linear(2, 2), 0.0, 1.0, decay)


def test_a_network_without_layers_is_all_head() -> None:
    assert set(parameter_depths(nn.Linear(2, 2)).values()) == {1}
