"""A prefix is what peft computes, and each layer attends to it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lmkit.modules.network_inputs import check_packing
from lmkit.modules.sparse_head import logits_at
from lmkit.modules.speed import set_dropout
from lmkit.surgery.composition import use_adapters
from lmkit.surgery.prefix_folder import write_prefix_folder
from lmkit.surgery.prefix_tuning import PrefixTuning
from lmkit.surgery.prompt_tuning import PromptTuning
from lmkit.surgery.selection import Selection
from tests import tiny

peft = pytest.importorskip("peft")

P, VOCABULARY = 3, 99
CLASSIFIER: Any = AutoModelForSequenceClassification
TAGGER: Any = AutoModelForTokenClassification
ANSWERER: Any = AutoModelForQuestionAnswering
MASKED: Any = AutoModelForMaskedLM
CAUSAL: Any = AutoModelForCausalLM
ENCODERS = ["bert", "roberta", "electra"]
DECODERS = [*tiny.CAUSAL]


def build(kind: str, head: Any = CLASSIFIER, seed: int = 0, **more: Any) -> Any:
    """Build a network with weights under which every input tells."""
    settings = {**tiny.MASKED, **tiny.CAUSAL, **tiny.SEQ2SEQ}[kind]
    config = AutoConfig.for_model(
        **{"vocab_size": VOCABULARY, "pad_token_id": 0, **settings, **more}
    )
    network = head.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return network.eval()


def texts(rows: int = 3, length: int = 9) -> dict[str, Tensor]:
    """Make a batch whose rows are padded, but for the first."""
    batch = tiny.causal_batch(rows, length, VOCABULARY)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def first(output: Any) -> Tensor:
    """Return logits, or the first of them."""
    found: Tensor = next(iter(output.values()))
    return found


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("bert", CLASSIFIER),
        ("bert", TAGGER),
        ("bert", ANSWERER),
        ("roberta", CLASSIFIER),
        ("electra", CLASSIFIER),
        ("gpt2", CLASSIFIER),
        ("gpt2", CAUSAL),
        ("llama", CAUSAL),
    ],
)
def test_peft_loads_the_folder_and_computes_the_same(
    kind: str, head: Any, projection: bool, tmp_path: Path
) -> None:
    network, batch, spec = build(kind, head), texts(), PrefixTuning("mine", P, projection, 5)
    spec(network)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:  # the head too, which the folder has to bring
                parameter.add_(0.1)
    write_prefix_folder(network, spec, tmp_path, "some/base")
    plain = build(kind, head)
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    assert torch.allclose(first(theirs(**batch)), first(network(**batch)), atol=1e-6)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "PREFIX_TUNING"
    assert config["base_model_name_or_path"] == "some/base"
    states = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    assert states.numel() == 2 * 2 * 16 * P


def test_it_is_peft_on_the_same_weights_before_anything_is_written() -> None:
    network, batch = build("gpt2", CAUSAL), texts()
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    theirs = peft.get_peft_model(build("gpt2", CAUSAL), config).eval()
    PrefixTuning(length=P)(network)
    own = network.transformer.prefixes.adapters["default"]
    own.load_state_dict(theirs.prompt_encoder["default"].state_dict())
    left = {name: tensor.flip(1) for name, tensor in batch.items()}
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(network(**batch).logits, theirs(**batch).logits)
    assert torch.equal(network.generate(**left, **how), theirs.generate(**left, **how))


def test_the_first_layer_attends_to_the_learned_keys_and_values() -> None:
    network, ids = build("bert"), texts(1)["input_ids"]
    PrefixTuning(length=P)(network)
    bert, layer = network.bert, network.bert.encoder.layer[0].attention.self
    states = bert.embeddings(ids, position_ids=torch.arange(P, P + 9).unsqueeze(0))
    learned = bert.prefixes.adapters["default"].embedding.weight.view(P, 4, 2, 8)

    def heads(projection: Any) -> Tensor:
        return projection(states)[0].view(9, 2, 8)

    keys = torch.cat([learned[:, 0], heads(layer.key)]).transpose(0, 1)
    values = torch.cat([learned[:, 1], heads(layer.value)]).transpose(0, 1)
    queries = heads(layer.query).transpose(0, 1)
    weights = (queries @ keys.mT / 8**0.5).softmax(-1)
    expected = (weights @ values).transpose(0, 1).reshape(9, 16)
    found: list[Tensor] = []
    layer.register_forward_hook(lambda m, args, output: found.append(output[0][0]))
    network(input_ids=ids)
    assert torch.allclose(found[0], expected, atol=1e-5)


def test_the_number_of_parameters_is_known() -> None:
    network = build("bert", hidden_size=384, num_attention_heads=12, num_hidden_layers=6)
    PrefixTuning()(network)
    learning = {n: p.numel() for n, p in network.named_parameters() if p.requires_grad}
    assert learning.pop("bert.prefixes.adapters.default.embedding.weight") == 46_080
    assert set(learning) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_a_text_among_padding_is_the_text_alone(kind: str) -> None:
    network, batch = build(kind, CAUSAL if kind in DECODERS else MASKED), texts()
    plain = network(**batch).logits
    PrefixTuning(length=P)(network)
    together = network(**batch).logits
    assert together.shape == plain.shape and (together - plain)[0].abs().max() > 1e-2
    for row in range(3):
        length = int(batch["attention_mask"][row].sum())
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
        assert torch.allclose(network(**alone).logits[0], together[row, :length], atol=1e-4)
        without_mask = network(input_ids=alone["input_ids"]).logits[0]
        assert torch.allclose(without_mask, together[row, :length], atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", *DECODERS])
def test_logits_at_some_positions_are_those_of_all(kind: str) -> None:
    network = build(kind, CAUSAL if kind in DECODERS else MASKED)
    PrefixTuning(length=P)(network)
    positions = torch.tensor([0, 4, 10])
    expected = network(**texts()).logits.flatten(0, 1)[positions]
    assert torch.allclose(logits_at(network, positions, **texts()), expected, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_cache_changes_nothing_of_what_is_written(kind: str, beams: int) -> None:
    network, batch = build(kind, CAUSAL), texts()
    left = {name: tensor.flip(1) for name, tensor in batch.items()}
    how = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    how["pad_token_id"] = 0
    plain = network.generate(**left, **how)
    PrefixTuning(length=P)(network)
    found = network.generate(**left, **how)
    assert torch.equal(found, network.generate(**left, **how, use_cache=False))
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_cache_is_given_back_to_those_who_asked(kind: str) -> None:
    network, ids = build(kind, CAUSAL), texts(1)["input_ids"]
    PrefixTuning(length=P)(network)
    assert network(input_ids=ids, use_cache=False).past_key_values is None
    head = network(input_ids=ids[:, :5], use_cache=True)
    rest = network(input_ids=ids[:, 5:], past_key_values=head.past_key_values)
    both = torch.cat([head.logits, rest.logits], dim=1)
    assert torch.allclose(both, network(input_ids=ids).logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_prompts_and_a_prefix_go_together_in_any_order(kind: str) -> None:
    head = CAUSAL if kind in DECODERS else CLASSIFIER
    one, other, batch = build(kind, head), build(kind, head), texts()
    surgeries = [PrefixTuning(length=P), PromptTuning(length=2)]
    for surgery, reverse in zip(surgeries, surgeries[::-1], strict=True):
        surgery(one)
        reverse(other)
    assert torch.equal(one(**batch).logits, other(**batch).logits)
    assert one(**batch).logits.shape == build(kind, head)(**batch).logits.shape
    if head is CAUSAL:
        ids = batch["input_ids"][:1]
        start = one(input_ids=ids[:, :5], use_cache=True)
        rest = one(input_ids=ids[:, 5:], past_key_values=start.past_key_values)
        both = torch.cat([start.logits, rest.logits], dim=1)
        assert torch.allclose(both, one(input_ids=ids).logits, atol=1e-4)


def test_gradients_reach_the_prefix_and_nothing_else() -> None:
    network = build("bert")
    PrefixTuning(length=P, projection=True, head=False)(network)
    set_dropout(network, 0.0)
    network.train()(**texts()).logits.square().sum().backward()
    reached = {n for n, p in network.named_parameters() if p.grad is not None}
    assert reached == {n for n, p in network.named_parameters() if p.requires_grad}
    assert len(reached) == 5 and all("prefixes" in name for name in reached)


def test_prefixes_of_several_names_stand_one_behind_the_other() -> None:
    network, batch = build("bert"), texts()
    plain = network(**batch).logits
    PrefixTuning("a", length=2, seed=1)(network)
    only_a = network(**batch).logits
    PrefixTuning("b", length=P, seed=2)(network)
    prefixes = network.bert.prefixes
    one = build("bert")
    PrefixTuning(length=2 + P)(one)
    with torch.no_grad():
        joined = torch.cat([part.embedding.weight for part in prefixes.adapters.values()])
        one.bert.prefixes.adapters["default"].embedding.weight.copy_(joined)
    assert torch.equal(one(**batch).logits, network(**batch).logits)
    prefixes.use({"a": 1.0})
    assert torch.equal(network(**batch).logits, only_a)
    prefixes.use({})
    assert torch.equal(network(**batch).logits, plain)
    with pytest.raises(ValueError, match="must be 0 or 1"):
        prefixes.use({"b": 2.0})


def test_a_copy_has_a_prefix_of_its_own() -> None:
    network, batch = build("bert"), texts()
    PrefixTuning(length=P)(network)
    before = network(**batch).logits
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.bert.prefixes.adapters["default"].embedding.weight.mul_(2)
    assert torch.equal(network(**batch).logits, before)
    assert not torch.equal(other(**batch).logits, before)


def test_half_precision_attends_to_it_too() -> None:
    network, batch = build("bert"), texts()
    PrefixTuning(length=P)(network)
    exact = network(**batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        near = network(**batch).logits
    assert torch.allclose(near.float(), exact, atol=0.2)
    assert network.to(torch.bfloat16)(**batch).logits.isfinite().all()


def test_twice_is_once_and_what_is_drawn_depends_on_the_seed_alone() -> None:
    network, other = build("bert"), build("bert")
    torch.manual_seed(1)
    PrefixTuning(length=P, seed=4)(network)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    PrefixTuning(length=P, seed=4)(other)
    PrefixTuning(length=P, seed=4)(network)
    ours, theirs = network.state_dict(), other.state_dict()
    assert set(ours) == set(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)
    with pytest.raises(ValueError, match="a prefix 'default' already"):
        PrefixTuning(length=P, seed=5)(network)


@pytest.mark.parametrize("kind", ["distilbert", "modernbert"])
def test_architectures_without_keys_from_outside_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="takes none"):
        PrefixTuning()(build(kind))


def test_encoder_decoders_are_refused() -> None:
    with pytest.raises(ValueError, match="encoder-decoder"):
        PrefixTuning()(build("t5", AutoModelForSeq2SeqLM))


def test_checkpointed_gradients_are_refused_early_and_late() -> None:
    network = build("gpt2", CAUSAL)
    network.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient_checkpointing_disable"):
        PrefixTuning()(network)
    assert not any("prefixes" in name for name in network.state_dict())
    network.gradient_checkpointing_disable()
    PrefixTuning()(network)
    network.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient_checkpointing_disable"):
        network(**texts())


def test_rows_of_several_texts_are_refused() -> None:
    network = build("bert", MASKED)
    PrefixTuning(length=P)(network)
    with pytest.raises(ValueError, match="prefix tuning needs one text in a row"):
        check_packing(network, 32, causal=False)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_a_text_with_more_tokens_than_places_behind_the_prefix_is_refused(kind: str) -> None:
    network = build(kind, CAUSAL if kind == "gpt2" else MASKED)
    PrefixTuning(length=P)(network)
    places = network.config.max_position_embeddings - (kind == "roberta") - P
    ids = torch.randint(5, VOCABULARY, (1, places + 1))
    assert network(input_ids=ids[:, 1:]).logits.isfinite().all()
    with pytest.raises(ValueError, match=f"max_length of the data to at most {places}"):
        network(input_ids=ids)


def test_a_prefix_that_leaves_no_position_is_refused() -> None:
    network = build("bert")
    places = network.config.max_position_embeddings
    message = rf"prefix of {places} is too long for the network's {places} positions"
    with pytest.raises(ValueError, match=message):
        PrefixTuning(length=places)(network)
    assert all(p.requires_grad for p in network.parameters())
    # Two that go alone do not go together.
    for name in ("a", "b"):
        PrefixTuning(name=name, length=places // 2)(network)
    use_adapters(network, {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match=message):
        network(input_ids=torch.randint(5, VOCABULARY, (1, 2)))


def test_a_folder_of_peft_holds_no_more_than_prefix_head_and_pooler(tmp_path: Path) -> None:
    network, spec = build("bert"), PrefixTuning(length=P)
    spec(network)
    network.bert.pooler.requires_grad_(True)
    with torch.no_grad():
        network.bert.pooler.dense.weight.mul_(2)
    write_prefix_folder(network, spec, tmp_path, None)
    theirs = peft.PeftModel.from_pretrained(build("bert"), str(tmp_path)).eval()
    assert torch.allclose(theirs(**texts()).logits, network(**texts()).logits, atol=1e-6)
    Selection(norms=True)(network)
    with pytest.raises(ValueError, match="weights were trained"):
        write_prefix_folder(network, spec, tmp_path, None)
    with pytest.raises(ValueError, match="no prefix 'default' made by"):
        write_prefix_folder(build("bert"), spec, tmp_path, None)
    masked = build("bert", MASKED)
    spec(masked)
    with pytest.raises(ValueError, match="no prefix tuning for BertForMaskedLM"):
        write_prefix_folder(masked, spec, tmp_path, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"hidden": -1}, "hidden must be at least 0"),
        ({"name": ""}, "name must be a word without a dot"),
    ],
)
def test_arguments_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixTuning(**settings)
