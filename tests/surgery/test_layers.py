"""Networks cut down to some of their layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from lmkit.modules.network import build_network
from lmkit.surgery.layers import keep_layers
from lmkit.surgery.low_rank import LowRank
from tests import tiny

CLASSES = {
    **dict.fromkeys(tiny.MASKED, AutoModelForMaskedLM),
    **dict.fromkeys(tiny.CAUSAL, AutoModelForCausalLM),
}
DEPTHS = ("num_hidden_layers", "n_layers", "n_layer")


def network_of(name: str, depth: int = 4) -> PreTrainedModel:
    config = {"vocab_size": 99, **{**tiny.MASKED, **tiny.CAUSAL}[name]}
    key = next(key for key in DEPTHS if key in config)
    torch.manual_seed(0)
    return build_network(CLASSES[name], {**config, key: depth}, False)[0].eval()


def logits(network: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(10, 24).reshape(2, 7)
    more = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    return network(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits


@pytest.mark.parametrize("name", list(CLASSES))
def test_what_is_kept_is_computed_as_before_and_loads_in_plain_transformers(
    name: str, tmp_path: Path
) -> None:
    network = network_of(name)
    whole = network_of(name)
    keep_layers(network, [0, 3])
    cut = logits(network)
    # The layers between, made to pass on what they get, give the same.
    stack = next(
        iter(__import__("lmkit.surgery.depth", fromlist=["x"]).layer_stacks(whole).values())
    )
    for layer in stack[1:3]:
        hidden = {}

        def keep(m: object, args: tuple, kwargs: dict, hidden: dict = hidden) -> None:
            hidden["x"] = args[0] if args else kwargs["hidden_states"]

        def pass_on(m: object, args: tuple, output: object, hidden: dict = hidden) -> object:
            return hidden["x"] if isinstance(output, torch.Tensor) else (hidden["x"], *output[1:])

        layer.register_forward_pre_hook(keep, with_kwargs=True)
        layer.register_forward_hook(pass_on)
    torch.testing.assert_close(cut, logits(whole))
    network.save_pretrained(tmp_path)
    again = CLASSES[name].from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), cut, rtol=0, atol=0)


@pytest.mark.parametrize("layers", [[1, 2], {"encoder": [1], "decoder": [0, 2]}, {"decoder": [2]}])
def test_both_stacks_of_an_encoder_decoder_are_cut(layers: object, tmp_path: Path) -> None:
    config = {**tiny.SEQ2SEQ["t5"], "vocab_size": 99, "num_layers": 3, "num_decoder_layers": 3}
    network = build_network(AutoModelForSeq2SeqLM, config, False)[0].eval()
    keep_layers(network, layers)
    network.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(network), rtol=0, atol=0)
    wanted = layers if isinstance(layers, dict) else {"encoder": layers, "decoder": layers}
    assert network.config.num_layers == len(wanted.get("encoder", range(3)))
    assert network.config.num_decoder_layers == len(wanted.get("decoder", range(3)))


def test_a_decoder_still_writes() -> None:
    network = network_of("gpt2")
    keep_layers(network, [1, 3])
    ids = torch.arange(10, 15).unsqueeze(0)
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with_cache = network.generate(ids, use_cache=True, **how)
    assert torch.equal(with_cache, network.generate(ids, use_cache=False, **how))


@pytest.mark.parametrize("layers", [[], [4], [-1, 2], [2, 1], [1, 1]])
def test_numbers_that_are_not_there_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="numbers from 0 to 3 in increasing order"):
        keep_layers(network_of("bert"), layers)


def test_a_network_that_could_not_go_on_is_refused_and_stays_whole() -> None:
    """The first layer of ModernBERT has no norm in front, and no other layer can stand first."""
    network = network_of("modernbert")
    before = logits(network)
    with pytest.raises(ValueError, match="'modernbert' is not known to go on with fewer"):
        keep_layers(network, [1, 2])
    assert network.config.num_hidden_layers == 4 and torch.equal(logits(network), before)
    config = {**tiny.SEQ2SEQ["t5"], "vocab_size": 99}
    both = build_network(AutoModelForSeq2SeqLM, config, False)[0]
    with pytest.raises(ValueError, match="layers of the decoder must be numbers from 0 to 1"):
        keep_layers(both, {"encoder": [0], "decoder": [7]})
    assert len(both.encoder.block) == 2, "the encoder is not cut either"


def test_layers_go_from_a_network_whose_widths_no_config_says() -> None:
    network = network_of("bert")
    LowRank({"ffn_input": 3})(network)
    keep_layers(network, [0, 3])
    assert network.config.num_hidden_layers == 2 and logits(network).isfinite().all()


def test_stacks_are_named_rightly() -> None:
    with pytest.raises(ValueError, match="are for an encoder-decoder"):
        keep_layers(network_of("bert"), {"encoder": [0]})
    config = {**tiny.SEQ2SEQ["t5"], "vocab_size": 99}
    network = build_network(AutoModelForSeq2SeqLM, config, False)[0]
    with pytest.raises(ValueError, match="names 'middle'"):
        keep_layers(network, {"middle": [0]})
