"""Blocks of a transformer are known by how their layers are called; others are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    XLNetConfig,
    XLNetModel,
    YolosConfig,
    YolosModel,
)

from lmkit.surgery import NothingMatchedError
from lmkit.surgery.blocks import find_blocks, group_blocks, stack_paths
from lmkit.surgery.structured_pruning import RemoveUnits
from lmkit.surgery.units import find_units, gated
from tests.surgery.pruned import build, masks, some

_SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 99,
}


def test_layers_that_write_units_are_named_with_their_shares() -> None:
    llama, gpt2, modernbert = (find_blocks(build(n)) for n in ("llama", "gpt2", "modernbert"))
    shares = [(w.name.rpartition(".")[2], w.width, w.parts) for w in llama[0].writers]
    assert shares == [("q_proj", 8, 1), ("k_proj", 4, 1), ("v_proj", 4, 1)]
    assert llama[0].queries == 2 and llama[0].count == 2 and llama[0].width == 8
    assert [(w.width, w.parts) for w in gpt2[0].writers] == [(4, 3)]
    assert [(w.width, w.parts) for w in modernbert[1].writers] == [(1, 2)]
    assert modernbert[1].holder.endswith("layers.0.mlp")


def test_attentions_across_to_an_encoder_are_blocks_too() -> None:
    how = {"is_decoder": True, "add_cross_attention": True}
    bert = BertLMHeadModel(BertConfig(**_SIZES, **how))
    places = [block.place for block in find_blocks(bert) if block.layer == 0]
    assert places == ["attention", "crossattention", ""]
    small = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 99}
    gpt2 = GPT2LMHeadModel(GPT2Config(**small, add_cross_attention=True))
    crossing = find_blocks(gpt2, ("heads",))[1]
    assert [(w.width, w.parts) for w in crossing.writers] == [(4, 1), (4, 2)]


def test_blocks_that_must_agree_are_grouped() -> None:
    groups = group_blocks(find_blocks(build("t5")))
    assert [len(group) for group in groups if group[0].shared] == [3, 3, 3]
    assert all(len(group) == 1 for group in groups if not group[0].shared)
    assert all(len(group) == 1 for group in group_blocks(find_blocks(build("bart"))))


def test_an_architecture_that_is_like_a_known_one_is_known() -> None:
    network = MistralForCausalLM(MistralConfig(**_SIZES, num_key_value_heads=1))
    assert [block.kind for block in find_blocks(network)] == ["heads", "ffn"] * 2


def test_what_is_unknown_is_named() -> None:
    network = XLNetModel(XLNetConfig(vocab_size=99, d_model=8, n_layer=2, n_head=2, d_inner=8))
    says = r"no query, key and value known for 'xlnet': layer\.0 has the linear layers ff\.layer_1"
    with pytest.raises(NothingMatchedError, match=says):
        find_blocks(network)
    with pytest.raises(NothingMatchedError, match="no two layers of a feed-forward block"):
        find_blocks(network, ("ffn",))
    shared = AlbertModel(AlbertConfig(**_SIZES, embedding_size=8))
    with pytest.raises(NothingMatchedError, match="does not say where its layers are"):
        find_blocks(shared)
    with pytest.raises(NothingMatchedError, match="Linear is no network of transformers"):
        stack_paths(nn.Linear(2, 2))


def test_widths_that_do_not_go_together_are_refused() -> None:
    network: Any = build("bert")
    network.bert.encoder.layer[1].attention.self.attention_head_size = 3
    with pytest.raises(ValueError, match=r"widths in bert\.encoder\.layer\.1\.attention do not go"):
        find_blocks(network)
    other: Any = build("bert")
    other.bert.encoder.layer[0].intermediate.dense = nn.Linear(16, 25)
    with pytest.raises(ValueError, match=r"widths in bert\.encoder\.layer\.0 do not go together"):
        find_blocks(other)


def test_stacks_are_named() -> None:
    assert stack_paths(build("gpt2")) == {"": "transformer.h"}
    assert stack_paths(build("bart")) == {
        "encoder": "model.encoder.layers",
        "decoder": "model.decoder.layers",
    }


def test_an_attention_within_an_attention_is_found_and_cut() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = YolosConfig(**sizes, intermediate_size=24, image_size=[8, 8], patch_size=4)
    torch.manual_seed(0)
    network = YolosModel(config).double().eval()
    images = {"pixel_values": torch.randn(1, 3, 8, 8, dtype=torch.float64)}
    kept = some(find_units(network))
    with torch.no_grad(), gated(network, masks(network, kept)):
        wanted = network(**images).last_hidden_state
    RemoveUnits(kept)(network)
    with torch.no_grad():
        found = network(**images).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_attentions_across_are_cut_as_others() -> None:
    """Heads of a decoder's attention to an encoder, which GPT-2 fuses in another way."""
    small = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 99, "n_positions": 16}
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(**small, add_cross_attention=True))
    bert = BertLMHeadModel(BertConfig(**_SIZES, is_decoder=True, add_cross_attention=True))
    ids = torch.randint(5, 99, (1, 6))
    given = {"input_ids": ids, "encoder_hidden_states": torch.randn(1, 5, 8).double()}
    for network in (gpt2.double().eval(), bert.double().eval()):
        kept = some(find_units(network))
        assert any("cross" in name for name in kept)
        with torch.no_grad(), gated(network, masks(network, kept)):
            wanted = network(**given).logits
        RemoveUnits(kept)(network)
        with torch.no_grad():
            torch.testing.assert_close(network(**given).logits, wanted, rtol=0, atol=1e-10)
