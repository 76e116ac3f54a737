"""What has a row for each token loses rows, and nothing else changes."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertForMaskedLM, PreTrainedModel

from lmkit.surgery import NothingMatchedError, from_spec, to_spec
from lmkit.surgery.lora import LoRA
from lmkit.surgery.low_rank import LowRank
from lmkit.surgery.selection import Selection
from lmkit.surgery.structure_folder import load_structure, structural_specs, write_structure
from lmkit.surgery.vocabulary import TrimVocabulary, id_ranges, needed_ids
from tests.surgery.adapted import NETWORKS, inputs

SIZE = 99
_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": SIZE,
    "max_position_embeddings": 66,
}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": SIZE}


def _with_head(name: str, settings: dict[str, Any], head: str = "ForMaskedLM") -> Any:
    def make() -> PreTrainedModel:
        config = getattr(transformers, f"{name}Config")(**settings)
        network: PreTrainedModel = getattr(transformers, f"{name}{head}")(config)
        return network

    return make


def _two_berts() -> PreTrainedModel:
    halves = BertConfig(**_BERT), BertConfig(**_BERT, is_decoder=True, add_cross_attention=True)
    ids = {"decoder_start_token_id": 2, "pad_token_id": 0}
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*halves, **ids)
    return transformers.EncoderDecoderModel(config)


#: Beyond those of adapters, with what is particular about their heads.
MORE = {
    "bert_tied": _with_head("Bert", _BERT),
    "bert_untied": _with_head("Bert", {**_BERT, "tie_word_embeddings": False}),
    "roberta_tied": _with_head("Roberta", _BERT),
    "distilbert_tied": _with_head(
        "DistilBert", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": SIZE}
    ),
    "electra": _with_head("Electra", {**_BERT, "embedding_size": 8}),
    "albert": _with_head("Albert", {**_BERT, "embedding_size": 8}),
    "mobilebert_two_matrices": _with_head(
        "MobileBert",
        {
            **_BERT,
            "hidden_size": 32,
            "embedding_size": 8,
            "true_hidden_size": 16,
            "intra_bottleneck_size": 16,
        },
    ),
    "mpnet": _with_head("MPNet", _BERT),
    "llama_tied": _with_head("Llama", {**_BERT, "tie_word_embeddings": True}, "ForCausalLM"),
    "opt": _with_head(
        "OPT",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "vocab_size": SIZE,
            "max_position_embeddings": 66,
            "word_embed_proj_dim": 16,
        },
        "ForCausalLM",
    ),
    "mt5_untied": _with_head(
        "MT5", {**_T5, "tie_word_embeddings": False}, "ForConditionalGeneration"
    ),
    "two_berts": _two_berts,
}
ALL = [*NETWORKS, *MORE]


def build(name: str) -> PreTrainedModel:
    """Make a network in eval mode whose every weight is a number of its own, biases too."""
    torch.manual_seed(1)
    # A network and the config that it is made of are one thing: the latter is changed too.
    made = MORE[name]() if name in MORE else NETWORKS[name][0](copy.deepcopy(NETWORKS[name][1]))
    with torch.no_grad():
        for tensor in {id(t): t for t in made.state_dict(keep_vars=True).values()}.values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.randn(tensor.shape)
    return made.eval()


def chosen(network: PreTrainedModel, count: int = 40, seed: int = 0) -> list[int]:
    """Draw ids to keep, with those that have to be."""
    rows = network.get_input_embeddings().num_embeddings
    drawn = random.Random(seed).sample(range(rows), min(rows, count))
    return sorted(needed_ids(network) | set(drawn))


def texts_of(network: PreTrainedModel, ids: list[int]) -> dict[str, Tensor]:
    """Make inputs of some tokens alone."""
    made = inputs(network)
    draw = random.Random(2)
    for name in ("input_ids", "decoder_input_ids"):
        if name in made:
            drawn = torch.tensor(draw.choices(ids, k=made[name].numel()))
            made[name] = drawn.reshape(made[name].shape)
    return made


def renumbered(batch: dict[str, Tensor], ids: list[int]) -> dict[str, Tensor]:
    place = torch.full((SIZE,), -1)
    place[torch.tensor(ids)] = torch.arange(len(ids))
    return {n: place[t] if n.endswith("input_ids") else t for n, t in batch.items()}


@torch.no_grad()
def said(network: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return all hidden states, and the first output."""
    output = network(**batch, output_hidden_states=True)
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    return [h for name in names for h in output.get(name) or ()], output[0]


@pytest.mark.parametrize("name", ALL)
def test_texts_of_kept_tokens_are_read_as_before_to_the_last_bit(name: str) -> None:
    network = build(name)
    before, ids = copy.deepcopy(network), chosen(network)
    TrimVocabulary(id_ranges(ids), SIZE)(network)
    batch = texts_of(before, ids)
    (hidden, scores), (ours, new) = said(before, batch), said(network, renumbered(batch, ids))
    assert hidden and all(torch.equal(a, b) for a, b in zip(hidden, ours, strict=True))
    over_tokens = scores.shape[-1] == SIZE
    assert torch.equal(scores[..., ids] if over_tokens else scores, new)
    assert not any(SIZE in tensor.shape for tensor in network.state_dict().values())


@pytest.mark.parametrize("name", ALL)
def test_a_trimmed_network_is_a_plain_one(name: str, tmp_path: Path) -> None:
    network = build(name)
    ids = chosen(network)
    TrimVocabulary(id_ranges(ids), SIZE)(network)
    network.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path).eval()
    state, theirs = network.state_dict(), again.state_dict()
    assert all(torch.equal(theirs[key], tensor) for key, tensor in state.items())
    batch = renumbered(texts_of(network, ids), ids)
    assert torch.equal(said(again, batch)[1], said(network, batch)[1])
    # All that a module holds beside its weights is what a network that is made so has.
    plain = {name: vars(module) for name, module in again.named_modules()}
    for place, module in network.named_modules():
        held = {k: v for k, v in vars(module).items() if isinstance(v, int) or v is None}
        assert held == {k: plain[place][k] for k in held}


@pytest.mark.parametrize("name", ALL)
def test_weights_stay_the_same_parameters_and_ties_and_flags_stay(name: str) -> None:
    network = build(name)
    Selection(layers=1)(network)
    before = dict(network.named_parameters(remove_duplicate=False))
    flags = {key: p.requires_grad for key, p in before.items()}
    network.get_input_embeddings().weight.grad = torch.ones_like(
        network.get_input_embeddings().weight
    )
    TrimVocabulary(id_ranges(chosen(network)), SIZE)(network)
    after = dict(network.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys() and all(after[key] is before[key] for key in after)
    assert {key: p.requires_grad for key, p in after.items()} == flags
    assert network.get_input_embeddings().weight.grad is None


def test_a_trimmed_network_learns_and_its_padding_does_not() -> None:
    network = build("bert_tied").train()
    ids = chosen(network)
    TrimVocabulary(id_ranges(ids), SIZE)(network)
    batch = renumbered(texts_of(network, ids), ids)
    network(**batch, labels=batch["input_ids"]).loss.backward()
    assert network.get_input_embeddings().weight.grad.shape == (len(ids), 16)
    assert network.get_output_embeddings().bias.grad.abs().sum() > 0


def test_twice_is_once_and_a_spec_says_it_all() -> None:
    network = build("bart")
    surgery = TrimVocabulary(id_ranges(chosen(network)), SIZE)
    spec = json.loads(json.dumps(to_spec(surgery)))
    assert from_spec(spec) == surgery and to_spec(from_spec(spec)) == spec
    surgery(network)
    state, config = copy.deepcopy(network.state_dict()), network.config.to_dict()
    from_spec(spec)(network)
    assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
    assert network.config.to_dict() == config


def test_a_second_trimming_follows_the_first_and_both_replay() -> None:
    network = build("bert_tied")
    untouched = copy.deepcopy(network)
    first = chosen(network, 60)
    one = TrimVocabulary(id_ranges(first), SIZE)
    one(network)
    second = chosen(network, 20, seed=3)
    two = TrimVocabulary(id_ranges(second), len(first))
    two(network)
    assert network.config.trimmed_from == [SIZE, len(first)]
    # At once from the start, and on a network that its config already says is trimmed.
    at_once = copy.deepcopy(untouched)
    TrimVocabulary(id_ranges(first[i] for i in second), SIZE)(at_once)
    fresh = type(network)(copy.deepcopy(network.config))
    for surgery in (one, two):
        surgery(untouched)
        surgery(fresh)
    state = network.state_dict()
    for other in (at_once, untouched):
        assert all(torch.equal(t, state[n]) for n, t in other.state_dict().items())
    assert {n: t.shape for n, t in fresh.state_dict().items()} == {
        n: t.shape for n, t in state.items()
    }


def test_ids_of_padding_and_of_all_else_follow() -> None:
    config = transformers.BartConfig(
        encoder_layers=2,
        decoder_layers=2,
        d_model=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=SIZE,
        pad_token_id=97,
        bos_token_id=90,
        eos_token_id=98,
        decoder_start_token_id=98,
        forced_eos_token_id=98,
    )
    network = transformers.BartForConditionalGeneration(config).eval()
    network.generation_config.suppress_tokens = [3, 95]
    ids = [3, 50, 90, 97, 98]
    assert needed_ids(network) == {90, 97, 98}
    TrimVocabulary(id_ranges(ids), SIZE)(network)
    assert network.get_input_embeddings().padding_idx == 3
    named = (getattr(network.config, f"{w}_token_id") for w in ("pad", "bos", "eos"))
    assert [*named, network.config.decoder_start_token_id] == [3, 2, 4, 4]
    generation = network.generation_config
    assert (generation.forced_eos_token_id, generation.suppress_tokens) == (4, [0])
    made = network.generate(torch.tensor([[0, 1, 4]]), max_new_tokens=5)
    assert made[0, 0] == 4 and made.max() < 5


def test_positions_that_are_numbered_from_padding_keep_what_is_before_it() -> None:
    network = build("roberta_tied")  # its padding is 1, its positions begin at 2
    assert needed_ids(network) == {0, 1, 2}
    settings = {**_BERT, "pad_token_id": 4, "bos_token_id": None, "eos_token_id": None}
    other = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**settings))
    assert needed_ids(other) == {0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match="numbers positions from the id of padding, 4, and of"):
        TrimVocabulary(id_ranges([0, 1, 4, 9, 12]), SIZE)(other)
    assert other.config.vocab_size == SIZE and other.config.pad_token_id == 4


def test_a_config_that_names_tokens_that_are_not_there_is_left_alone() -> None:
    network = build("gpt2")
    assert network.config.eos_token_id == 50256 and needed_ids(network) == set()
    TrimVocabulary("3-9", SIZE)(network)
    assert network.config.eos_token_id == 50256 and network.config.vocab_size == 7


@pytest.mark.parametrize(
    ("kept", "size", "message"),
    [
        ("", 9, "kept must be ranges of ids"),
        ([1, 2], 9, r"kept must be ranges of ids such as .*\[1, 2\]"),
        ("3-", 9, "kept must be ranges"),
        ("5,3", 9, "in ascending order, each id once"),
        ("3-5,5", 9, "in ascending order, each id once"),
        ("0-9", 9, "kept has the id 9, and size says 9 rows"),
        ("0-3", 0, "size must be at least 1"),
        ("0-3", 2.5, "size must be a whole number"),
    ],
)
def test_attributes_outside_their_range_are_refused(kept: Any, size: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrimVocabulary(kept, size)


def test_ranges_are_written_and_read() -> None:
    for seed in range(20):
        draw = random.Random(seed)
        ids = sorted(draw.sample(range(200), draw.randint(1, 150)))
        assert TrimVocabulary(id_ranges(ids), 200).ids == ids
    assert id_ranges(range(90_000)) == "0-89999"


def test_another_network_and_a_lost_id_are_refused_and_nothing_changes() -> None:
    network = build("bert_tied")
    before = copy.deepcopy(network)
    for surgery, message in (
        (TrimVocabulary("0-5", 50), r"keeps 6 of 50 tokens, and the network has rows for 99"),
        (TrimVocabulary("1-5", SIZE), r"pad_token_id of the config is 0, and kept is without it"),
    ):
        with pytest.raises(ValueError, match=message):
            surgery(network)
    assert network.config.to_dict() == before.config.to_dict()
    state = network.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in before.state_dict().items())


def test_what_has_no_tokens_is_refused() -> None:
    with pytest.raises(NothingMatchedError, match="Linear names no embeddings of tokens"):
        TrimVocabulary("0-2", 9)(nn.Linear(2, 2))


def test_two_vocabularies_in_one_network_are_refused() -> None:
    halves = (
        BertConfig(**_BERT),
        BertConfig(**{**_BERT, "vocab_size": 50}, is_decoder=True, add_cross_attention=True),
    )
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*halves)
    with pytest.raises(ValueError, match="tables for several vocabularies"):
        TrimVocabulary("0-20", SIZE)(transformers.EncoderDecoderModel(config))


def test_adapters_inside_the_layers_stay_and_one_around_the_head_is_refused() -> None:
    network = build("llama")
    LoRA(targets=["query"], rank=2)(network)
    before, ids = copy.deepcopy(network), chosen(network)
    TrimVocabulary(id_ranges(ids), SIZE)(network)
    batch = texts_of(before, ids)
    assert torch.equal(said(before, batch)[1][..., ids], said(network, renumbered(batch, ids))[1])
    other = build("llama")
    LoRA(targets=["lm_head"], rank=2)(other)
    with pytest.raises(ValueError, match="lm_head has a row for each token, and adapters wrap it"):
        TrimVocabulary(id_ranges(ids), SIZE)(other)
    assert other.config.vocab_size == SIZE


def test_factorized_tables_and_heads_are_trimmed_and_come_back_from_a_folder(
    tmp_path: Path,
) -> None:
    network = build("bert_untied")
    low = LowRank({"bert.embeddings.word_embeddings": 3, "cls.predictions.decoder": 4, "query": 2})
    low(network)
    before, ids = copy.deepcopy(network), chosen(network)
    trim = TrimVocabulary(id_ranges(ids), SIZE)
    trim(network)
    batch = texts_of(before, ids)
    (hidden, scores), (ours, new) = said(before, batch), said(network, renumbered(batch, ids))
    assert all(torch.equal(a, b) for a, b in zip(hidden, ours, strict=True))
    assert (scores[..., ids] - new).abs().max() < 1e-6
    specs = structural_specs(network, [to_spec(low), to_spec(trim)])
    assert [spec["class_path"].rpartition(".")[2] for spec in specs] == ["LowRank"]
    write_structure(network, tmp_path, specs)
    auto = transformers.AutoModelForMaskedLM
    again, _ = load_structure(auto, transformers.AutoConfig.from_pretrained(tmp_path), tmp_path)
    assert torch.equal(said(again.eval(), renumbered(batch, ids))[1], new)


def test_factors_that_would_save_nothing_any_more_are_refused() -> None:
    network = build("bert_untied")
    LowRank({"bert.embeddings.word_embeddings": 12})(network)
    with pytest.raises(
        ValueError, match=r"rank is 12, and bert\.embeddings.word_embeddings has 20 x"
    ):
        TrimVocabulary("0-19", SIZE)(network)


def test_bfloat16_and_a_base_model_without_head() -> None:
    network = AutoModel.from_config(BertConfig(**_BERT)).to(torch.bfloat16).eval()
    before, ids = copy.deepcopy(network), chosen(network)
    TrimVocabulary(id_ranges(ids), SIZE)(network)
    batch = texts_of(before, ids)
    assert network.get_input_embeddings().weight.dtype == torch.bfloat16
    assert torch.equal(said(before, batch)[1], said(network, renumbered(batch, ids))[1])


def test_a_weight_that_is_computed_is_refused() -> None:
    network = BertForMaskedLM(BertConfig(**_BERT))
    table = network.get_input_embeddings()
    nn.utils.parametrize.register_parametrization(table, "weight", nn.Identity())
    with pytest.raises(ValueError, match=r"word_embeddings.weight should have a row .* has none"):
        TrimVocabulary("0-20", SIZE)(network)
