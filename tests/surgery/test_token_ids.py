"""Configs say the same of the same tokens under their new ids."""

from __future__ import annotations

import pytest
from transformers import (
    BartConfig,
    BertConfig,
    EncoderDecoderConfig,
    GenerationConfig,
    GPT2Config,
    MarianConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from lmkit.surgery.token_ids import configs_of, named_ids, nested_configs, rewrite_ids

NEW = {0: 0, 1: 1, 5: 2, 7: 3, 9: 4}


def test_ids_and_sizes_are_rewritten_and_those_that_never_were_stay() -> None:
    config = BartConfig(
        vocab_size=10,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=7,
        decoder_start_token_id=9,
        forced_eos_token_id=50_000,
        max_position_embeddings=10,
    )
    rewrite_ids(config, NEW, 10)
    ids = dict(named_ids(config))
    assert (config.vocab_size, config.max_position_embeddings) == (5, 10)
    assert ids == {
        "pad_token_id": [1],
        "bos_token_id": [0],
        "eos_token_id": [3],
        "decoder_start_token_id": [4],
        "forced_eos_token_id": [50_000],
    }
    assert config.eos_token_id == 3  # a number, and no list


def test_lists_of_ids_stay_lists() -> None:
    config = GenerationConfig(eos_token_id=[7, 9], bos_token_id=5)
    rewrite_ids(config, NEW, 10)
    assert (config.eos_token_id, config.bos_token_id) == ([3, 4], 2)


def test_what_must_not_be_written_loses_what_cannot_be_written() -> None:
    config = GenerationConfig(
        suppress_tokens=[5, 6], begin_suppress_tokens=[8, 9], bad_words_ids=[[5, 7], [5, 6], [9]]
    )
    rewrite_ids(config, NEW, 10)
    assert config.suppress_tokens == [2] and config.begin_suppress_tokens == [4]
    assert config.bad_words_ids == [[2, 3], [4]]
    lost = GenerationConfig(bad_words_ids=[[6], [8, 9]])
    rewrite_ids(lost, NEW, 10)
    assert lost.bad_words_ids is None  # an empty list is refused by transformers


@pytest.mark.parametrize("word", ["force_words_ids", "sequence_bias"])
def test_what_is_not_understood_is_refused(word: str) -> None:
    value = [[[5]]] if word == "force_words_ids" else [[[5], 1.0]]
    with pytest.raises(ValueError, match=f"the config has {word}, which name tokens"):
        rewrite_ids(GenerationConfig(**{word: value}), NEW, 10)


def test_an_id_that_is_lost_is_refused() -> None:
    config = BertConfig(vocab_size=10, pad_token_id=2)
    with pytest.raises(ValueError, match=r"pad_token_id of the config is 2, and kept is without"):
        rewrite_ids(config, NEW, 10)


def test_a_size_of_another_vocabulary_stays() -> None:
    config = MarianConfig(vocab_size=10, decoder_vocab_size=10, pad_token_id=9, eos_token_id=0)
    config.decoder_start_token_id = 9
    rewrite_ids(config, NEW, 10)
    assert (config.vocab_size, config.decoder_vocab_size, config.pad_token_id) == (5, 5, 4)
    other = GPT2Config(vocab_size=11)
    rewrite_ids(other, NEW, 10)
    assert other.vocab_size == 11


def test_all_configs_of_a_network_are_found_once() -> None:
    network = T5ForConditionalGeneration(
        T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    configs = configs_of(network)
    assert len({id(config) for config in configs}) == len(configs)
    held = {id(module.config) for module in network.modules() if hasattr(module, "config")}
    assert {id(config) for config in configs} == held | {id(network.generation_config)}
    half = BertConfig().to_dict()
    both = EncoderDecoderConfig(encoder=half, decoder=half)
    assert nested_configs([both]) == [both, both.encoder, both.decoder]
