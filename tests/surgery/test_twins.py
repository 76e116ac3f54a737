"""What follows a setting of a config is found out, and what is not known is noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

from lmkit.surgery import NothingMatchedError
from lmkit.surgery.blocks import find_blocks
from lmkit.surgery.structured_pruning import RemoveUnits
from lmkit.surgery.twins import (
    block_places,
    check_blocks,
    ffn_settings,
    following,
    head_settings,
    plain_twin,
    tensor_shapes,
)
from lmkit.surgery.units import find_units
from tests.surgery.pruned import NETWORKS, build

_SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 99,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_twin_has_the_same_shapes_no_numbers_and_draws_none(name: str) -> None:
    network = build(name)
    before = torch.get_rng_state()
    twin = plain_twin(network)
    assert torch.equal(torch.get_rng_state(), before)
    assert tensor_shapes(twin) == tensor_shapes(network)
    assert all(p.is_meta for p in twin.parameters())
    assert twin.config is not network.config


@pytest.mark.parametrize("name", NETWORKS)
def test_the_blocks_are_all_that_follows(name: str) -> None:
    network = build(name)
    check_blocks(network, find_blocks(network))
    config = network.config
    stack = "encoder" if config.is_encoder_decoder else ""
    wide = {setting: 30 for s in (stack, "decoder") for setting in ffn_settings(config, s)}
    inner = {
        place for block in find_blocks(network, ("ffn",)) for place in block_places(network, block)
    }
    moved = following(network, wide)
    assert moved.keys() == inner and {now for _, now in moved.values()} <= {30, 60}


def test_what_follows_by_itself_is_pinned() -> None:
    network = build("gpt2")
    follows = following(network, {"hidden_size": 32})
    assert ("transformer.h.0.mlp.c_fc.bias", 0) in follows
    pinned = following(network, {"hidden_size": 32}, {"n_inner": 64})
    assert follows.keys() - pinned.keys() == {
        (f"transformer.h.{layer}.mlp.{place[0]}", place[1])
        for layer in range(3)
        for place in (("c_fc.weight", 1), ("c_fc.bias", 0), ("c_proj.weight", 0))
    }


def test_settings_are_known_by_stack() -> None:
    assert ffn_settings(build("bart").config, "decoder") == ["decoder_ffn_dim"]
    assert head_settings(build("bart").config, "encoder") == ["encoder_attention_heads"]
    assert head_settings(build("llama").config, "") == [
        "num_attention_heads",
        "num_key_value_heads",
    ]
    assert ffn_settings(build("distilbert").config, "") == ["hidden_dim"]


def test_a_setting_that_decides_more_than_sizes_is_refused() -> None:
    network = BertModel(BertConfig(**_SIZES))
    with pytest.raises(ValueError, match="num_hidden_layers of 'bert' decides more than sizes"):
        following(network, {"num_hidden_layers": 2})


def test_parameters_with_a_share_of_each_head_that_are_not_known_are_noticed() -> None:
    """MPNet's attention is called as T5's is, and its table of positions stands elsewhere."""
    network = MPNetModel(MPNetConfig(**{**_SIZES, "num_hidden_layers": 2}))
    assert len(find_blocks(network, ("heads",))) == 2
    before = {n: t.clone() for n, t in network.state_dict().items()}
    says = r"num_attention_heads of 'mpnet'.*relative_attention_bias\.weight\. Units of this arch"
    for ask in (find_units, RemoveUnits({"encoder.layer.0.attention.attn.o": [0]})):
        with pytest.raises(ValueError, match=says):
            ask(network)
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


class Normed(BertModel):
    """A BERT with a norm over its inner neurons, as some architectures have one."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder.layer[0].intermediate.norm = nn.LayerNorm(config.intermediate_size)


class Fixed(BertModel):
    """A BERT one of whose blocks does not care for the config."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        layer = self.encoder.layer[0]
        layer.intermediate.dense, layer.output.dense = nn.Linear(8, 12), nn.Linear(12, 8)


@pytest.mark.parametrize("cls", [Normed, Fixed])
def test_blocks_that_are_more_or_less_than_the_config_says_are_noticed(cls: Any) -> None:
    with pytest.raises(ValueError, match="intermediate_size of 'bert' and the ffn that are known"):
        find_units(cls(BertConfig(**_SIZES)))


def test_a_config_without_a_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network = BertModel(BertConfig(**_SIZES))
    monkeypatch.setattr("lmkit.surgery.twins._FFN_SETTINGS", ("d_ff",))
    with pytest.raises(
        NothingMatchedError, match="how the config of 'bert' says the number of ffn"
    ):
        check_blocks(network, find_blocks(network))
