"""Prompts stand in front of the text, and whoever reads the network sees the text alone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    EncoderDecoderConfig,
    EncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput

from lmkit.modules.network_inputs import check_packing
from lmkit.modules.sparse_head import logits_at
from lmkit.modules.speed import set_dropout
from lmkit.surgery.prompt_tuning import PromptTuning, bake
from lmkit.surgery.selection import Selection
from tests import tiny

P, VOCABULARY = 3, 99
BART = {
    "model_type": "bart",
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ALBERT = {**tiny.MASKED["bert"], "model_type": "albert", "embedding_size": 8}
ENCODERS = [*tiny.MASKED, "albert"]
DECODERS = [*tiny.CAUSAL]
BOTH = ["t5", "bart", "two"]
CLASSIFIER: Any = AutoModelForSequenceClassification
MASKED: Any = AutoModelForMaskedLM
CAUSAL: Any = AutoModelForCausalLM


def strong(network: Any) -> Any:
    """Give a network weights under which every input tells."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return network.eval()


def build(kind: str, head: Any = CLASSIFIER, **more: Any) -> Any:
    settings = {**tiny.MASKED, **tiny.CAUSAL, **tiny.SEQ2SEQ, "bart": BART, "albert": ALBERT}
    given = {"vocab_size": VOCABULARY, "pad_token_id": 0, **settings[kind], **more}
    return strong(head.from_config(AutoConfig.for_model(**given)))


def build_both(kind: str) -> Any:
    ids = {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}
    if kind != "two":
        return build(kind, AutoModelForSeq2SeqLM, **ids)
    half = AutoConfig.for_model(vocab_size=VOCABULARY, **tiny.MASKED["bert"])
    config = EncoderDecoderConfig.from_encoder_decoder_configs(half, copy.deepcopy(half), **ids)
    return strong(EncoderDecoderModel(config))


def texts(rows: int = 3, length: int = 9) -> dict[str, Tensor]:
    """Make a batch whose rows are padded, but for the first."""
    batch = tiny.causal_batch(rows, length, VOCABULARY)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def tuned(network: Any, **settings: Any) -> Any:
    PromptTuning(**{"length": P, "seed": 1, **settings})(network)
    prompts = next(m for m in network.modules() if hasattr(m, "soft_prompts")).soft_prompts
    for name in prompts.adapter_names:
        with torch.no_grad():
            prompts.adapters[name].vectors.normal_(generator=torch.Generator().manual_seed(2))
    return network


def hide(stack: Any, word: str = "attention_mask") -> None:
    """Mask the first tokens that a stack sees."""

    def zero(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs[word].clone()
        mask[:, :P] = 0
        return args, {**kwargs, word: mask}

    stack.register_forward_pre_hook(zero, with_kwargs=True)


def gap(ours: Tensor, theirs: Tensor, batch: dict[str, Tensor]) -> float:
    """Return the largest difference at real tokens, if the results are of tokens."""
    difference = (ours - theirs).abs()
    real = batch["attention_mask"].bool()
    return (difference[real] if difference.shape[:2] == real.shape else difference).max().item()


def test_bert_computes_what_its_parts_give_for_prompts_and_text() -> None:
    network, batch = tuned(build("bert")), texts()
    bert, vectors = network.bert, network.bert.soft_prompts.adapters["default"].vectors
    table = bert.embeddings
    front = vectors + table.position_embeddings.weight[:P] + table.token_type_embeddings.weight[0]
    front = nn.functional.layer_norm(front, (16,), table.LayerNorm.weight, table.LayerNorm.bias)
    states = torch.cat([front.expand(3, -1, -1), table(batch["input_ids"])], dim=1)
    seen = torch.cat([torch.ones(3, P), batch["attention_mask"]], dim=1)
    bias = (1 - seen)[:, None, None, :] * torch.finfo(torch.float32).min
    for layer in bert.encoder.layer:
        states = layer(states, bias)
    pooled = torch.tanh(bert.pooler.dense(states[:, P]))
    assert torch.allclose(network(**batch).logits, network.classifier(pooled), atol=1e-6)


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_masked_prompts_change_nothing_and_seen_ones_do(kind: str) -> None:
    head = CAUSAL if kind in DECODERS else CLASSIFIER
    network, batch = build(kind, head), texts()
    plain = network(**batch).logits
    tuned(network)
    assert gap(network(**batch).logits, plain, batch) > 1e-3
    hide(network.base_model)
    assert gap(network(**batch).logits, plain, batch) < 1e-5


@pytest.mark.parametrize("kind", BOTH)
def test_masked_prompts_of_an_encoder_change_nothing_in_the_decoder(kind: str) -> None:
    network, batch = build_both(kind), texts()
    batch["decoder_input_ids"] = texts(3, 5)["input_ids"]
    plain = network(**batch).logits
    tuned(network)
    seen = network(**batch).logits
    hide(network.get_encoder())
    half_hidden = network(**batch).logits
    hide(network.get_decoder(), "encoder_attention_mask")
    assert (network(**batch).logits - plain).abs().max() < 1e-5
    assert (seen - plain).abs().max() > 1e-3 and (half_hidden - plain).abs().max() > 1e-3


def test_the_decoder_of_t5_attends_to_the_prompts_of_its_encoder() -> None:
    network, batch = build_both("t5"), texts()
    decoder_ids = texts(3, 5)["input_ids"]
    plain = copy.deepcopy(network)
    found = tuned(network)(**batch, decoder_input_ids=decoder_ids).logits
    vectors = network.encoder.soft_prompts.adapters["default"].vectors
    read = torch.cat([vectors.expand(3, -1, -1), plain.shared(batch["input_ids"])], dim=1)
    mask = torch.cat([torch.ones(3, P).long(), batch["attention_mask"]], dim=1)
    states = plain.encoder(inputs_embeds=read, attention_mask=mask)[0]
    expected = plain(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=mask,
        decoder_input_ids=decoder_ids,
    ).logits
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_a_text_among_padding_is_the_text_alone(kind: str) -> None:
    head = CAUSAL if kind in DECODERS else MASKED
    network, batch = tuned(build(kind, head)), texts()
    together = network(**batch).logits
    for row in range(3):
        length = int(batch["attention_mask"][row].sum())
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
        assert torch.allclose(network(**alone).logits[0], together[row, :length], atol=1e-5)
        without_mask = network(input_ids=alone["input_ids"]).logits[0]
        assert torch.allclose(without_mask, together[row, :length], atol=1e-5)


@pytest.mark.parametrize("kind", BOTH)
def test_a_source_among_padding_is_the_source_alone(kind: str) -> None:
    network, batch = tuned(build_both(kind)), texts()
    ids = texts(3, 5)["input_ids"]
    together = network(**batch, decoder_input_ids=ids).logits
    length = int(batch["attention_mask"][2].sum())
    alone = {name: tensor[2:, :length] for name, tensor in batch.items()}
    assert torch.allclose(
        network(**alone, decoder_input_ids=ids[2:]).logits[0], together[2], atol=1e-5
    )


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "albert", "gpt2"])
def test_a_text_may_take_every_position_there_is(kind: str) -> None:
    network = tuned(build(kind, CAUSAL if kind == "gpt2" else MASKED))
    places = network.config.max_position_embeddings - (kind == "roberta")
    ids = torch.randint(5, VOCABULARY, (2, places))
    assert network(input_ids=ids).logits.shape == (2, places, VOCABULARY)


def test_more_prompts_than_positions_are_fine() -> None:
    network = tuned(build("bert", max_position_embeddings=12), length=20)
    assert network(**texts()).logits.isfinite().all()


def test_a_text_of_bart_keeps_its_positions() -> None:
    network = tuned(build_both("bart"))
    ids = torch.randint(5, VOCABULARY, (2, 64))
    states = network.get_encoder()(input_ids=ids).last_hidden_state
    assert states.shape == (2, P + 64, 16)


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (AutoModelForTokenClassification, (3, 9, 2)),
        (AutoModelForQuestionAnswering, (3, 9)),
        (MASKED, (3, 9, VOCABULARY)),
        (CLASSIFIER, (3, 2)),
    ],
)
def test_heads_see_the_text_alone(head: Any, shape: tuple[int, ...]) -> None:
    network, batch = tuned(build("bert", head)), texts()
    found = network(**batch, output_hidden_states=True)
    assert next(iter(found.values())).shape == shape
    assert {tuple(states.shape) for states in found.hidden_states} == {(3, 9, 16)}
    as_tuple = network(**batch, output_hidden_states=True, return_dict=False)
    assert torch.equal(as_tuple[0], next(iter(found.values())))
    assert all(map(torch.equal, as_tuple[-1], found.hidden_states))


def test_choices_are_rows_of_their_own() -> None:
    network, batch = tuned(build("bert", AutoModelForMultipleChoice)), texts(4)
    folded = {name: tensor.reshape(2, 2, 9) for name, tensor in batch.items()}
    assert network(**folded).logits.shape == (2, 2)


def test_types_of_a_pair_stay_with_their_tokens() -> None:
    network, batch = build("bert"), texts()
    types = torch.zeros_like(batch["input_ids"])
    types[:, 4:] = 1
    plain = network(**batch, token_type_ids=types).logits
    hide(tuned(network).base_model)
    assert torch.allclose(network(**batch, token_type_ids=types).logits, plain, atol=1e-5)


def test_attention_weights_have_rows_for_the_text_alone() -> None:
    network = tuned(build("bert", attn_implementation="eager"))
    weights = network(**texts(), output_attentions=True).attentions[0]
    assert weights.shape == (3, 2, 9, P + 9)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "gpt2", "llama"])
def test_logits_at_some_positions_are_those_of_all(kind: str) -> None:
    network = tuned(build(kind, CAUSAL if kind in DECODERS else MASKED))
    positions = torch.tensor([0, 4, 10])
    found = logits_at(network, positions, **texts())
    expected = network(**texts()).logits.flatten(0, 1)[positions]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_cache_changes_nothing_of_what_is_written(kind: str, beams: int) -> None:
    network, batch = build(kind, CAUSAL), texts()
    left = {name: tensor.flip(1) for name, tensor in batch.items()}
    how = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    how["pad_token_id"] = 0
    plain = network.generate(**left, **how)
    tuned(network)
    found = network.generate(**left, **how)
    assert torch.equal(found, network.generate(**left, **how, use_cache=False))
    assert not torch.equal(found, plain)
    for row in range(3):
        length = int(batch["attention_mask"][row].sum())
        alone = network.generate(input_ids=left["input_ids"][row : row + 1, -length:], **how)
        assert torch.equal(alone[0], found[row, -alone.shape[1] :])


@pytest.mark.parametrize("kind", DECODERS)
def test_going_on_from_a_cache_without_positions_is_the_whole_text(kind: str) -> None:
    network, ids = tuned(build(kind, CAUSAL)), texts(1)["input_ids"]
    first = network(input_ids=ids[:, :5], use_cache=True)
    rest = network(input_ids=ids[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    both = torch.cat([first.logits, rest.logits], dim=1)
    assert torch.allclose(both, network(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", BOTH)
def test_an_encoder_decoder_writes_the_same_with_a_cache(kind: str, beams: int) -> None:
    network, batch = tuned(build_both(kind)), texts()
    how = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": beams}
    found = network.generate(**batch, **how)
    assert torch.equal(found, network.generate(**batch, **how, use_cache=False))
    network.get_encoder().soft_prompts.use({})
    assert not torch.equal(found, network.generate(**batch, **how))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_a_copy_has_prompts_of_its_own(how: Any) -> None:
    network, batch = tuned(build("bert")), texts()
    before = network(**batch).logits
    other = how(network)
    with torch.no_grad():
        other.bert.soft_prompts.adapters["default"].vectors.normal_()
    assert torch.equal(network(**batch).logits, before)
    assert not torch.equal(other(**batch).logits, before)
    other.bert.soft_prompts.use({})
    assert network.bert.soft_prompts.count == P


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_the_network_can_be_traced_for_export(kind: str) -> None:
    class Logits(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.network(input_ids=input_ids, attention_mask=attention_mask).logits

    network = tuned(build(kind))
    free = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    shapes = {"input_ids": free, "attention_mask": free}
    traced = torch.export.export(
        Logits(network).eval(), (), kwargs=texts(2, 8), dynamic_shapes=shapes
    )
    batch = texts(4, 11)
    found = traced.module(check_guards=False)(**batch)
    assert torch.allclose(found, network(**batch).logits, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_checkpointed_gradients_are_the_same(kind: str, reentrant: bool) -> None:
    def gradient(checkpoint: bool) -> Tensor:
        more: dict[str, Any] = {}
        if kind == "t5":
            network = build_both("t5")
            more["decoder_input_ids"] = texts(3, 5)["input_ids"]
        else:
            network = build(kind, CAUSAL if kind == "gpt2" else CLASSIFIER)
        tuned(network, head=False)
        if checkpoint:
            network.gradient_checkpointing_enable({"use_reentrant": reentrant})
        network.train()
        set_dropout(network, 0.0)
        if kind != "bert":
            more["use_cache"] = False
        network(**texts(), **more).logits.square().mean().backward()
        (found,) = (p.grad for p in network.parameters() if p.requires_grad)
        assert found is not None
        return found

    expected = gradient(False)
    assert expected.abs().max() > 0
    assert torch.allclose(gradient(True), expected, rtol=1e-4, atol=1e-7)


def test_only_prompt_and_head_learn_and_their_number_is_known() -> None:
    network = build("bert", hidden_size=384, num_attention_heads=12)
    PromptTuning(length=10)(network)
    learning = {n: p.numel() for n, p in network.named_parameters() if p.requires_grad}
    assert learning.pop("bert.soft_prompts.adapters.default.vectors") == 3840
    assert set(learning) == {"classifier.weight", "classifier.bias"}


def test_it_adds_to_what_another_technique_trains() -> None:
    network = build("bert")
    Selection(norms=True)(network)
    before = {n for n, p in network.named_parameters() if p.requires_grad}
    PromptTuning(length=P)(network)
    after = {n for n, p in network.named_parameters() if p.requires_grad}
    assert after - before == {"bert.soft_prompts.adapters.default.vectors"} and before < after


def test_twice_is_once_and_another_of_the_name_is_refused() -> None:
    network, batch = build("bert"), texts()
    PromptTuning(length=P)(network)
    once, keys = network(**batch).logits, set(network.state_dict())
    PromptTuning(length=P)(network)
    assert torch.equal(network(**batch).logits, once) and set(network.state_dict()) == keys
    with pytest.raises(ValueError, match="a prompt 'default' already"):
        PromptTuning(length=P + 1)(network)


@pytest.mark.parametrize("encoder", ["none", "mlp", "lstm"])
def test_what_is_drawn_depends_on_the_seed_alone(encoder: str) -> None:
    def start(seed: int, elsewhere: int) -> dict[str, Tensor]:
        network = build("bert")
        torch.manual_seed(elsewhere)
        PromptTuning(encoder=encoder, seed=seed)(network)
        drawn = torch.rand(1)
        torch.manual_seed(elsewhere)
        assert torch.equal(drawn, torch.rand(1))
        state = network.bert.soft_prompts.state_dict()
        return {name: tensor.clone() for name, tensor in state.items()}

    first, again, other = start(0, 1), start(0, 2), start(1, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_random_prompts_are_as_large_as_embeddings() -> None:
    network = build("bert")
    network.get_input_embeddings().weight.data.mul_(5)
    PromptTuning(length=200)(network)
    drawn = network.bert.soft_prompts.adapters["default"].vectors.std().item()
    assert drawn == pytest.approx(network.get_input_embeddings().weight.std().item(), rel=0.1)


def test_a_prompt_of_text_starts_as_the_text() -> None:
    network, batch = build("bert"), texts(1)
    PromptTuning(length=5, init="text", token_ids=(7, 8, 9))(network)
    table = network.get_input_embeddings().weight
    start = network.bert.soft_prompts.adapters["default"].vectors
    assert torch.equal(start, table[[7, 8, 9, 7, 8]])
    with pytest.raises(ValueError, match=r"token_ids must lie in \[0, 99\), got \[99\]"):
        PromptTuning(name="b", init="text", token_ids=(99,))(network)
    assert network(**batch).logits.isfinite().all()


def test_a_prompt_of_the_vocabulary_starts_at_tokens_that_are_not_special() -> None:
    network = build("bert", vocab_size=12, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    PromptTuning(length=9, init="vocabulary")(network)
    start = network.bert.soft_prompts.adapters["default"].vectors
    same = (start.unsqueeze(1) == network.get_input_embeddings().weight).all(-1)
    assert sorted(same.long().argmax(1).tolist()) == list(range(3, 12)) and same.any(1).all()


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_a_baked_encoder_leaves_vectors_and_logits(encoder: str) -> None:
    network, batch = build("bert"), texts()
    PromptTuning(length=P, encoder=encoder, hidden=6, head=False)(network)
    expected = network(**batch).logits
    expected.sum().backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters() if p.requires_grad)
    bake(network)
    assert torch.allclose(network(**batch).logits, expected, atol=1e-6)
    assert [p.numel() for p in network.parameters() if p.requires_grad] == [P * 16]
    fresh = build("bert")
    PromptTuning(length=P)(fresh)
    assert set(fresh.state_dict()) == set(network.state_dict())
    with pytest.raises(ValueError, match="no prompts to bake"):
        bake(build("bert"))


@pytest.mark.parametrize("encoder", ["none", "mlp", "lstm"])
def test_half_precision_reads_prompts_too(encoder: str) -> None:
    if encoder == "lstm" and not torch.cpu._is_avx512_supported():
        pytest.skip("oneDNN has no LSTM in bfloat16 for this processor")
    network, batch = tuned(build("bert"), encoder=encoder), texts()
    exact = network(**batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        near = network(**batch).logits
    assert torch.allclose(near.float(), exact, atol=0.1)
    whole = network.to(torch.bfloat16)(**batch).logits
    assert torch.allclose(whole.float(), exact, atol=0.3)


def test_prompts_of_several_names_stand_one_behind_the_other() -> None:
    network, batch = build("bert"), texts()
    plain = network(**batch).logits
    PromptTuning("a", length=2, seed=1)(network)
    only_a = network(**batch).logits
    PromptTuning("b", length=P, seed=2)(network)
    prompts = network.bert.soft_prompts
    assert prompts.adapter_names == ("a", "b") and prompts.count == 2 + P
    assert prompts.active_adapters == {"a": 1.0, "b": 1.0}
    whole = network(**batch).logits
    one = build("bert")
    PromptTuning(length=2 + P)(one)
    with torch.no_grad():
        joined = torch.cat([part() for part in prompts.adapters.values()])
        one.bert.soft_prompts.adapters["default"].vectors.copy_(joined)
    assert torch.equal(one(**batch).logits, whole)
    prompts.use({"a": 1.0, "elsewhere": 0.5})
    assert torch.equal(network(**batch).logits, only_a)
    prompts.use({})
    assert torch.equal(network(**batch).logits, plain)
    with pytest.raises(ValueError, match="weight of 'a' must be 0 or 1"):
        prompts.use({"a": 0.5})


def test_rows_of_several_texts_are_refused() -> None:
    network = tuned(build("bert", MASKED))
    with pytest.raises(ValueError, match="batching='bucket'"):
        network(input_ids=texts()["input_ids"], attention_mask=torch.ones(3, 1, 9, 9).bool())
    with pytest.raises(ValueError, match="prompt tuning needs one text in a row"):
        check_packing(network, 32, causal=False)


def test_architectures_that_read_no_embeddings_are_refused() -> None:
    vision = AutoConfig.for_model("vit", **tiny._SIZES, intermediate_size=32, image_size=32)
    with pytest.raises(ValueError, match="ViTModel takes no input_ids"):
        PromptTuning()(AutoModelForImageClassification.from_config(vision))
    with pytest.raises(ValueError, match="needs a network of transformers, got Linear"):
        PromptTuning()(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"hidden": -1}, "hidden must be at least 0"),
        ({"init": "zero"}, "init must be one of random, vocabulary, text, got 'zero'"),
        ({"encoder": "gru"}, "encoder must be one of none, mlp, lstm"),
        ({"encoder": "mlp", "init": "vocabulary"}, "goes with encoder='none'"),
        ({"init": "text"}, "give both or neither"),
        ({"token_ids": (1,)}, "give both or neither"),
        ({"name": "a.b"}, "name must be a word without a dot"),
    ],
)
def test_arguments_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptTuning(**settings)
