"""From a name, a folder or a config to a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    BertModel,
)

from lmkit.modules.fresh_weights import fresh_weights_of
from lmkit.modules.frozen_base import fingerprint
from lmkit.modules.network import build_network, check_fit, usable_positions
from tests import tiny


def bert(**settings: Any) -> Any:
    config = {**tiny.MASKED["bert"], "vocab_size": 99, **settings}
    return build_network(AutoModelForMaskedLM, config)[0]


def test_a_folder_in_half_precision_is_trained_in_float32_and_train_mode(tmp_path: Path) -> None:
    bert().to(torch.bfloat16).save_pretrained(tmp_path)
    network, loaded = build_network(AutoModelForMaskedLM, str(tmp_path))
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert all(module.training for module in network.modules())
    assert loaded == set(network.state_dict())


@pytest.mark.parametrize(
    ("missing", "replaced", "classes", "said"),
    [
        ("ab", "", {}, "it has no weights for a, b: these start at random"),
        ("", "c", {0: "x", 1: "y"}, "it has a head for 2 other classes ('x', 'y'), so c start"),
        ("", "c", {}, "it has other shapes, so c start at random"),
        ("a", "ac", {0: "x"}, "for a: these start at random; it has a head for 1 other"),
        ("", "c", dict.fromkeys(range(11), "x"), "11 other classes ('x', 'x'"),
    ],
)
def test_why_weights_start_at_random(missing, replaced, classes, said):
    told = fresh_weights_of("it", missing, replaced, classes)
    assert said in told and ("..." in told) == (len(classes) > 10)
    assert "a, c" not in told  # what is missing is no other


def test_an_encoder_without_a_head_gets_a_random_one_that_is_not_in_the_fingerprint(
    tmp_path: Path,
) -> None:
    BertModel(bert().config, add_pooling_layer=False).save_pretrained(tmp_path)
    prints = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network, loaded = build_network(AutoModelForMaskedLM, str(tmp_path))
        assert not any("transform" in key for key in loaded)
        assert "bert.embeddings.word_embeddings.weight" in loaded
        prints.append(fingerprint(network, loaded))
    assert prints[0] == prints[1]


def test_a_folder_without_its_weights_gives_a_random_network(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    torch.manual_seed(5)
    network, loaded = build_network(AutoModelForMaskedLM, str(tmp_path), pretrained=False)
    assert not loaded
    assert not torch.equal(
        network.get_input_embeddings().weight,
        build_network(AutoModelForMaskedLM, str(tmp_path))[0].get_input_embeddings().weight,
    )


def test_a_config_from_scratch_takes_vocabulary_and_ids_from_the_tokenizer() -> None:
    tokenizer = tiny.tokenizer()
    network, _ = build_network(AutoModelForMaskedLM, tiny.MASKED["bert"], tokenizer=tokenizer)
    assert network.config.vocab_size == len(tokenizer)
    assert network.config.pad_token_id == tokenizer.pad_token_id


def test_fingerprint_tells_trained_weights_apart() -> None:
    network = bert()
    keys = set(network.state_dict())
    before = fingerprint(network, keys)
    assert fingerprint(network, keys) == before
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.0001)
    assert fingerprint(network, keys) != before


@pytest.mark.parametrize(
    ("auto", "model", "message"),
    [
        (AutoModelForMaskedLM, {"model_type": "gpt2"}, "no MaskedLM head.*CausalLMModule"),
        (AutoModelForCausalLM, {"model_type": "t5"}, "no CausalLM head.*MaskedLMModule"),
        (AutoModelForMaskedLM, {"model_type": "brt"}, "'brt', did you mean .*bert"),
        (AutoModelForMaskedLM, {"hidden_size": 8}, "needs a model_type"),
        (
            AutoModelForMaskedLM,
            {"model_type": "bert", "hiden_size": 8},
            "no setting 'hiden_size'; did you mean 'hidden_size'",
        ),
        (AutoModelForMaskedLM, "./nowhere", "no model folder at ./nowhere"),
        (AutoModelForMaskedLM, "runs/last.ckpt", "is a checkpoint.*lmkit export --ckpt runs"),
        (AutoModelForMaskedLM, "no/such-model", "neither as a folder nor from the hub"),
        (AutoModelForMaskedLM, ".", "holds no config.json"),
    ],
)
def test_a_wrong_model_is_named(auto: Any, model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(auto, model)


def test_a_network_with_relative_positions_alone_has_no_bound() -> None:
    sizes = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32, "vocab_size": 99}
    network = build_network(AutoModelForTokenClassification, {"model_type": "xlnet", **sizes})[0]
    assert usable_positions(network) is None


@pytest.mark.parametrize(("name", "expected"), [("bert", 66), ("roberta", 65), ("gpt2", 64)])
def test_usable_positions(name: str, expected: int) -> None:
    config = {**(tiny.MASKED | tiny.CAUSAL)[name], "vocab_size": 99}
    auto = AutoModelForMaskedLM if name in tiny.MASKED else AutoModelForCausalLM
    network = build_network(auto, config)[0]
    assert usable_positions(network) == expected
    ids = torch.randint(5, 99, (1, expected))
    network(input_ids=ids)
    with pytest.raises((IndexError, RuntimeError)):
        network(input_ids=torch.cat([ids, ids[:, :1]], 1))
    check_fit(network, None, expected)
    with pytest.raises(ValueError, match=f"set max_length to at most {expected}"):
        check_fit(network, None, expected + 1)


def test_a_tokenizer_with_more_tokens_than_the_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has \d+ tokens and the model embeddings for 99"):
        check_fit(bert(), tiny.tokenizer(), None)
