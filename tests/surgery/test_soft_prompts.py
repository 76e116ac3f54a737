"""A stack with prompts reads them and the text as one, and gives back what is of the text."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from lmkit.surgery.prompt_encoder import SoftPrompt
from lmkit.surgery.soft_prompts import SoftPrompts
from tests import tiny

P, VOCABULARY = 3, 99
KINDS = ["bert", "roberta", "distilbert", "modernbert", "gpt2", "llama"]


def stack(kind: str, **more: Any) -> Any:
    """Make a network without a head, whose inputs tell."""
    settings = {**tiny.MASKED, **tiny.CAUSAL}[kind]
    given = {"vocab_size": VOCABULARY, "pad_token_id": 0, **settings, **more}
    network = AutoModel.from_config(AutoConfig.for_model(**given))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return network.eval()


def prompted(network: Any, **lengths: int) -> SoftPrompts:
    """Put prompts into a network."""
    prompts = SoftPrompts(network)
    prompts.attach(network)
    for name, length in (lengths or {"a": P}).items():
        drawn = torch.randn(length, 16, generator=torch.Generator().manual_seed(length))
        prompts.add(name, SoftPrompt(drawn), SimpleNamespace(length=length))
    return prompts.eval()


def texts() -> dict[str, Tensor]:
    """Make a batch whose last row is padded."""
    ids = torch.randint(5, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 5:] = mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def caught(network: Any, **inputs: Any) -> dict[str, Any]:
    """Return what the network itself is given, behind the prompts' hook."""
    seen: dict[str, Any] = {}

    def keep(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    handle = network.register_forward_pre_hook(keep, with_kwargs=True)
    network(**inputs)
    handle.remove()
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_prompts_and_text_without_the_prompts(kind: str) -> None:
    network, plain, batch = stack(kind), stack(kind), texts()
    vectors = prompted(network).adapters["a"].vectors
    embeds = plain.get_input_embeddings()(batch["input_ids"])
    both = torch.cat([vectors.expand(2, -1, -1), embeds], dim=1)
    mask = torch.cat([torch.ones(2, P).long(), batch["attention_mask"]], dim=1)
    # The positions that the architecture gives the text alone, and the first ones for the prompts.
    more: dict[str, Any] = {}
    if kind in ("bert", "distilbert", "gpt2"):
        more["position_ids"] = torch.tensor([[*range(P), *range(7)]])
    elif kind == "roberta":
        own = RobertaEmbeddings.create_position_ids_from_input_ids(batch["input_ids"], 0)
        more["position_ids"] = torch.cat([torch.arange(1, 1 + P).expand(2, -1), own], dim=1)
    if kind == "distilbert":
        expected = positioned(plain, both, mask, more["position_ids"])
    else:
        expected = plain(inputs_embeds=both, attention_mask=mask, **more).last_hidden_state
    found = network(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    assert found.shape == (2, 7, 16)
    assert torch.allclose(found[real], expected[:, P:][real], atol=1e-5)


def positioned(network: Any, both: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Run a DistilBERT whose embeddings are told the positions."""
    table = network.embeddings.position_embeddings
    network.embeddings.position_embeddings = fixed = nn.Embedding(64, 16)
    with torch.no_grad():
        fixed.weight[: positions.shape[1]] = table(positions[0])
    states: Tensor = network(inputs_embeds=both, attention_mask=mask).last_hidden_state
    return states


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_active_prompt_it_is_the_plain_network(kind: str) -> None:
    network, batch = stack(kind), texts()
    expected = network(**batch).last_hidden_state
    prompts = prompted(network)
    prompts.use({})
    assert torch.equal(network(**batch).last_hidden_state, expected)
    prompts.use({"a": 1})
    assert not torch.allclose(network(**batch).last_hidden_state, expected, atol=1e-2)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "gpt2", "llama"])
def test_embeddings_are_read_as_the_tokens_that_they_are_of(kind: str) -> None:
    network, batch = stack(kind), texts()
    prompted(network)
    embeds = network.get_input_embeddings()(batch["input_ids"])
    found = network(inputs_embeds=embeds, attention_mask=batch["attention_mask"])[0]
    assert torch.allclose(found, network(**batch)[0], atol=1e-6)
    # What is given without a name is found as well.
    without = network(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    assert torch.equal(without, network(**batch)[0])


def test_a_mask_that_is_missing_sees_all() -> None:
    network, ids = stack("bert"), texts()["input_ids"]
    prompted(network)
    seen = caught(network, input_ids=ids)
    assert seen["attention_mask"].tolist() == [[1] * (P + 7)] * 2
    assert seen["input_ids"] is None and seen["inputs_embeds"].shape == (2, P + 7, 16)


def test_types_of_prompts_are_those_of_a_first_text() -> None:
    network, batch = stack("bert"), texts()
    prompted(network)
    types = torch.ones_like(batch["input_ids"])
    seen = caught(network, **batch, token_type_ids=types)
    assert seen["token_type_ids"].tolist() == [[0] * P + [1] * 7] * 2


def test_given_positions_are_kept_where_they_are_learned_and_moved_where_not() -> None:
    own = torch.tensor([[4, 5, 6, 7, 8, 9, 10]]).expand(2, -1)
    for kind, expected in (("gpt2", [0, 1, 2, *range(4, 11)]), ("llama", [0, 1, 2, *range(7, 14)])):
        network = stack(kind)
        prompted(network)
        seen = caught(network, **texts(), position_ids=own)
        assert seen["position_ids"].tolist() == [expected] * 2


def test_prompts_share_the_last_position_if_there_are_too_few() -> None:
    network = stack("bert", max_position_embeddings=8)
    prompted(network, a=11)
    assert caught(network, **texts())["position_ids"].tolist() == [[*range(8), 7, 7, 7, *range(7)]]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.no_grad()
def test_behind_a_cache_only_the_mask_grows(kind: str) -> None:
    network, ids = stack(kind), texts()["input_ids"][:1]
    prompted(network)
    whole = network(input_ids=ids).last_hidden_state
    first = network(input_ids=ids[:, :4], use_cache=True)
    assert first.past_key_values.get_seq_length() == P + 4
    cache = copy.deepcopy(first.past_key_values)
    more = {"attention_mask": torch.ones(1, 7).long(), "input_ids": ids[:, 4:]}
    seen = caught(network, **more, past_key_values=cache)
    assert seen["attention_mask"].shape == (1, P + 7) and torch.equal(seen["input_ids"], ids[:, 4:])
    rest = network(**more, past_key_values=first.past_key_values).last_hidden_state
    both = torch.cat([first.last_hidden_state, rest], dim=1)
    assert torch.allclose(both, whole, atol=1e-5)


def test_a_pooler_summarises_the_first_token_of_the_text() -> None:
    network, plain, batch = stack("bert"), stack("bert"), texts()
    prompted(network)
    for found in (network(**batch), network(**batch, return_dict=False)):
        assert torch.allclose(found[1], plain.pooler(found[0]), atol=1e-6)


def test_positions_behind_a_prompt_are_refused_by_kernels_that_take_them_for_packing() -> None:
    network = stack("bert")
    network.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' takes positions that start anew"):
        SoftPrompts(network)
    rotary = stack("llama")
    rotary.config._attn_implementation = "flash_attention_2"
    SoftPrompts(rotary)


def test_a_decoder_may_attend_to_what_its_encoder_was_given() -> None:
    config = AutoConfig.for_model(vocab_size=VOCABULARY, **tiny.SEQ2SEQ["t5"])
    network, batch = AutoModel.from_config(config).eval(), texts()
    encoder, decoder = network.get_encoder(), network.get_decoder()
    prompts = SoftPrompts(encoder, decoder)
    prompts.attach(encoder, decoder)
    prompts.add("a", SoftPrompt(torch.randn(P, 16)), SimpleNamespace(length=P))
    assert prompts.stays
    found = network(**batch, decoder_input_ids=batch["input_ids"])
    assert found.encoder_last_hidden_state.shape == (2, P + 7, 16)
    assert found.last_hidden_state.shape == (2, 7, 16)
    more = {"encoder_hidden_states": torch.zeros(2, P + 7, 16)}
    mask = {"encoder_attention_mask": batch["attention_mask"]}
    seen = caught(decoder, input_ids=batch["input_ids"], **more, **mask)
    assert torch.equal(seen["encoder_attention_mask"][:, P:], batch["attention_mask"])
    assert seen["encoder_attention_mask"][:, :P].all()
