"""The layers that turn tokens into embeddings, of networks and of what holds several."""

from __future__ import annotations

from torch import nn
from transformers import AutoModel, BertConfig, EncoderDecoderModel, T5Config, T5Model, ViTConfig

from lmkit.surgery.token_tables import token_tables

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = BertConfig(**SMALL, intermediate_size=8, vocab_size=19)


def test_each_layer_is_found_once_whether_it_shares_its_weight_or_not():
    network = T5Model(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=9))
    found = token_tables(nn.ModuleList([network, network.encoder]))
    assert list(found) == ["0.shared", "0.encoder.embed_tokens", "0.decoder.embed_tokens"]
    assert len({id(table.weight) for table in found.values()}) == 1


def test_each_network_inside_has_its_own():
    encoder, decoder = (AutoModel.from_config(BERT) for _ in range(2))
    network = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    found = token_tables(nn.ModuleDict({"net": network}))
    ending = "embeddings.word_embeddings"
    assert list(found) == [f"net.encoder.{ending}", f"net.decoder.{ending}"]


def test_of_images_it_is_the_layer_of_patches_and_elsewhere_there_is_none():
    images = AutoModel.from_config(
        ViTConfig(**SMALL, intermediate_size=8, image_size=8, patch_size=4)
    )
    assert list(token_tables(images)) == ["embeddings.patch_embeddings"]
    assert token_tables(nn.Embedding(3, 2)) == {}
