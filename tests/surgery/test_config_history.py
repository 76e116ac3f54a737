"""What surgeries change in a config is remembered as it was at first."""

from __future__ import annotations

import copy
import json

import torch
from torch import nn
from transformers import BertConfig, BertModel, EncoderDecoderConfig, ViTConfig

from lmkit.surgery.config_history import (
    config_changes,
    config_data,
    config_remembered,
    earlier_config,
    original_config,
    settings_now,
)

_SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 99,
}


def network() -> BertModel:
    with torch.device("meta"):
        return BertModel(BertConfig(**_SIZES))


def test_the_first_value_counts_and_what_else_changed_is_as_it_is_now() -> None:
    bert = network()
    before = config_data(bert.config)
    assert config_changes(bert) == {} and original_config(bert) == before
    with config_remembered(bert):
        pass
    assert config_changes(bert) == {}, "nothing was changed"
    for width in (10, 7):
        with config_remembered(bert):
            bert.config.intermediate_size = width
            bert.config.head_dim = 4
    bert.config.id2label = {0: "no", 1: "yes"}
    assert config_changes(bert) == {"changed": {"intermediate_size": 12}, "added": ["head_dim"]}
    assert settings_now(bert) == {"intermediate_size": 7, "head_dim": 4}
    original = original_config(bert)
    assert original.pop("id2label") == {"0": "no", "1": "yes"}
    original.pop("label2id"), before.pop("label2id"), before.pop("id2label")
    assert original == before


def test_one_inside_another_remembers_once() -> None:
    bert = network()
    with config_remembered(bert):
        bert.config.hidden_size = 6
        with config_remembered(bert):
            bert.config.hidden_size = 4
            bert.config.num_hidden_layers = 1
    # The inner one saw 6 before; of the outer one all is known by then but what it changed.
    assert config_changes(bert)["changed"]["num_hidden_layers"] == 2


def test_a_copy_remembers_too_and_plain_data_is_handed_out() -> None:
    bert = network()
    with config_remembered(bert):
        bert.config.intermediate_size = 7
    other = copy.deepcopy(bert)
    config_changes(bert)["changed"].clear()
    assert (
        config_changes(other)
        == config_changes(bert)
        == {
            "changed": {"intermediate_size": 12},
            "added": [],
        }
    )
    assert json.loads(json.dumps(config_changes(bert))) == config_changes(bert)


def test_a_config_is_taken_back() -> None:
    config = ViTConfig(hidden_size=8, num_attention_heads=2, id2label={0: "cat", 1: "dog"})
    changes = {"changed": {"num_attention_heads": 4}, "added": ["head_dim"]}
    config.head_dim = 4
    earlier = earlier_config(config, changes)
    assert earlier.num_attention_heads == 4 and not hasattr(earlier, "head_dim")
    assert earlier.id2label == {0: "cat", 1: "dog"} and type(earlier) is ViTConfig
    assert config.num_attention_heads == 2, "the one that was given is as it was"
    assert earlier_config(config, {}) is config and earlier_config(config, None) is config


def test_configs_within_a_config_are_remembered_whole() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            half = BertConfig(**_SIZES)
            self.config = EncoderDecoderConfig(encoder=half.to_dict(), decoder=half.to_dict())

    pair = Pair()
    with config_remembered(pair):
        pair.config.encoder.num_hidden_layers = 1
    assert config_changes(pair)["changed"]["encoder"]["num_hidden_layers"] == 2
    earlier = earlier_config(pair.config, config_changes(pair))
    assert earlier.encoder.num_hidden_layers == 2 and earlier.decoder.num_hidden_layers == 2


def test_what_has_no_config_is_left_alone() -> None:
    layer = nn.Linear(2, 2)
    with config_remembered(layer):
        layer.bias = None
    assert config_changes(layer) == {}
