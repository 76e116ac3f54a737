"""What is kept of the inside of a network, against what plain transformers shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from lmkit.modules.attention import MAPS, use_fast_attention
from lmkit.modules.captures import (
    Place,
    capturing,
    depth_of,
    freeze_unreached,
    show_maps,
    stack_of,
    width_of,
)
from tests import tiny

#: Those whose last layer is followed by a norm in what transformers shows as the last state.
NORMED = ("modernbert", "gpt2", "llama")


def build(name: str, **changed: Any) -> Any:
    causal = name in tiny.CAUSAL
    settings = {**(tiny.CAUSAL if causal else tiny.MASKED)[name], "vocab_size": 99, **changed}
    for token in ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id"):
        settings.setdefault(token, 0)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    return (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_config(config).eval()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 99, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", [*tiny.MASKED, *tiny.CAUSAL])
def test_hidden_states_are_those_that_transformers_shows(name: str) -> None:
    network = build(name)
    places = [Place("hidden", layer) for layer in range(3)]
    with torch.no_grad():
        with capturing(network, places) as kept:
            network(**batch())
        shown = network(**batch(), output_hidden_states=True).hidden_states
    for place in places[: 2 if name in NORMED else 3]:
        assert torch.equal(kept[place], shown[place.layer]), place
    assert kept[places[2]].shape == shown[2].shape


@pytest.mark.parametrize("name", [*tiny.MASKED, *tiny.CAUSAL])
def test_maps_are_those_that_transformers_shows(name: str) -> None:
    network, places = build(name), [Place("attention", 1), Place("attention", 2)]
    before = network(**batch()).logits
    show_maps(network, places)
    with torch.no_grad(), capturing(network, places) as kept:
        logits = network(**batch()).logits
    real = batch()["attention_mask"].bool()
    assert torch.allclose(logits[real], before[real], atol=1e-5)
    eager = build(name, attn_implementation="eager")
    with torch.no_grad():
        shown = eager(**batch(), output_attentions=True).attentions
    for place in places:
        ours, theirs = (x.transpose(1, 2)[real] for x in (kept[place], shown[place.layer - 1]))
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert torch.allclose(ours.sum(-1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2", "llama", "modernbert"])
def test_projections_are_what_the_layers_put_out(name: str) -> None:
    network = build(name)
    places = [Place(kind, 2) for kind in ("query", "key", "value")]  # type: ignore[arg-type]
    with torch.no_grad(), capturing(network, places) as kept:
        network(**batch())
    with torch.no_grad(), capturing(network, [Place("hidden", 1)]) as states:
        network(**batch())
    assert {t.shape for t in kept.values()} == {(3, 9, 16)}
    rows = [t.flatten(0, 1) for t in kept.values()]
    assert not torch.allclose(rows[0], rows[1]) and not torch.allclose(rows[1], rows[2])
    layer = stack_of(network)[1][1]
    parts = {
        "bert": lambda x: [getattr(layer.attention.self, n)(x) for n in ("query", "key", "value")],
        "roberta": lambda x: [
            getattr(layer.attention.self, n)(x) for n in ("query", "key", "value")
        ],
        "distilbert": lambda x: [getattr(layer.attention, f"{n}_lin")(x) for n in "qkv"],
        "gpt2": lambda x: layer.attn.c_attn(layer.ln_1(x)).split(16, -1),
        "llama": lambda x: [
            getattr(layer.self_attn, f"{n}_proj")(layer.input_layernorm(x)) for n in "qkv"
        ],
        "modernbert": lambda x: layer.attn.Wqkv(layer.attn_norm(x)).chunk(3, -1),
    }
    with torch.no_grad():
        expected = parts[name](states[Place("hidden", 1)])
    for place, tensor in zip(places, expected, strict=True):
        assert torch.allclose(kept[place], tensor, atol=1e-6), place


def test_nothing_is_left_behind() -> None:
    network = build("bert")
    places = [Place("hidden", 0), Place("hidden", 2), Place("query", 1)]

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())

    with capturing(network, places) as kept:
        network(**batch())
        assert hooks() == 3
    assert hooks() == 0 and all(t.requires_grad for t in kept.values())
    with pytest.raises(RuntimeError, match="struck"), capturing(network, places):
        raise RuntimeError("struck")
    assert hooks() == 0


def test_a_place_that_is_not_there_is_named() -> None:
    network = build("bert")
    for place in (Place("hidden", 3), Place("attention", 0), Place("query", 3)):
        says = f"there is no {place.kind} {place.layer}: the network has 2 layers"
        with pytest.raises(ValueError, match=says), capturing(network, [place]):
            pass
    for place in (Place("hidden", 1), Place("attention", 1)):
        says = f"'bert' gave nothing for {place}"
        with pytest.raises(ValueError, match=says), capturing(network, [place]):
            if place.kind == "attention":
                network(**batch())  # by its own attention, which shows none


def test_attention_is_left_as_it_is_but_for_maps() -> None:
    network = build("bert")
    show_maps(network, [Place("hidden", 1), Place("query", 1)])
    assert network.config._attn_implementation == "sdpa"
    show_maps(network, [Place("attention", 1)])
    assert network.config._attn_implementation == MAPS
    assert use_fast_attention(network, "sdpa") == MAPS


def test_depth_and_width_are_those_of_the_config() -> None:
    network = build("llama", num_hidden_layers=3)
    assert depth_of(network) == 3 and width_of(network) == 16
    with pytest.raises(ValueError, match="stack='decoder' is for an encoder-decoder"):
        depth_of(network, "decoder")


def test_what_a_place_does_not_depend_on_is_frozen() -> None:
    network = build("bert").train()
    frozen = set(freeze_unreached(network, [Place("key", 2)]))
    assert frozen == {n for n, p in network.named_parameters() if not p.requires_grad}
    parts = "bert.encoder.layer.1.attention.self"
    assert f"{parts}.query.weight" in frozen and f"{parts}.value.bias" in frozen
    assert f"{parts}.key.weight" not in frozen
    assert not any(n.startswith(("bert.embeddings", "bert.encoder.layer.0")) for n in frozen)
    assert any(n.startswith("cls.") for n in frozen)
    assert network.training and network.bert.training
    assert not any(p.grad is not None for p in network.parameters())
    assert freeze_unreached(network, [Place("key", 2)]) == []
