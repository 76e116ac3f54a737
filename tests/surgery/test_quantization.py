"""What is trained rounded and what holds whole numbers compute the same, in every architecture."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lmkit.surgery import NothingMatchedError, from_spec, to_spec
from lmkit.surgery.low_rank import LowRank
from lmkit.surgery.quantization import FakeQuantize, Quantize, converted
from lmkit.surgery.quantization_conversion import (
    convert,
    fake_quantized_layers,
    make_float,
    quantized_layers,
)
from tests.surgery.adapted import NETWORKS, build, logits

SCHEMES: dict[str, dict[str, Any]] = {
    "weights": {"activations": None},
    "tokens": {"activations": "per_token"},
    "tensors": {"activations": "per_tensor"},
    "four": {"activations": "per_token", "bits": 4, "group_size": 8},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_prepared_and_converted_say_the_same_to_the_bit(name: str, scheme: str) -> None:
    network = build(name)
    keys = {key: tensor.shape for key, tensor in network.state_dict().items()}
    learns, whole = copy.deepcopy(network), copy.deepcopy(network)
    FakeQuantize(**SCHEMES[scheme])(learns)
    Quantize(**SCHEMES[scheme])(whole)
    # A prepared network has the names and shapes of the plain one, and the same weights.
    assert {key: tensor.shape for key, tensor in learns.state_dict().items()} == keys
    assert all(torch.equal(t, network.state_dict()[k]) for k, t in learns.state_dict().items())
    with torch.no_grad():
        plain, said = logits(network), logits(learns)
        assert torch.equal(logits(whole), said) and not torch.equal(said, plain)
        gap = (said - plain).abs().max() / plain.abs().max()
        assert gap < (0.5 if scheme == "four" else 0.1)
        convert(learns)
        assert torch.equal(logits(learns), said)
        assert {k: t.shape for k, t in learns.state_dict().items()} == {
            k: t.shape for k, t in whole.state_dict().items()
        }
        assert len(quantized_layers(learns)) > 8 and not fake_quantized_layers(learns)
        # Back in floating-point numbers the structure is the plain one, and so are its ties.
        make_float(learns)
        assert {key: tensor.shape for key, tensor in learns.state_dict().items()} == keys
        assert len(list(learns.parameters())) == len(list(network.parameters()))
        if scheme == "weights":
            assert torch.equal(logits(learns), said)
        assert not quantized_layers(learns)


@pytest.mark.parametrize("precision", ["bf16 autocast", "float64"])
def test_they_do_in_other_precisions(precision: str) -> None:
    network = build("bert")
    if precision == "float64":
        network = network.double()
    learns = copy.deepcopy(network)
    FakeQuantize()(learns)
    whole = copy.deepcopy(learns)
    convert(whole)
    half = precision != "float64"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert torch.equal(logits(learns), logits(whole))
        assert not torch.equal(logits(learns), logits(network))


@pytest.mark.parametrize("name", ["bert", "masked", "gpt2", "t5"])
def test_done_twice_is_done_once_and_another_scheme_is_refused(name: str) -> None:
    for kind in (FakeQuantize, Quantize):
        network = build(name)
        kind()(network)
        before = [id(module) for module in network.modules()]
        kind()(network)
        assert [id(module) for module in network.modules()] == before
        with pytest.raises(ValueError, match=r"is quantized already.*and this asks for 4 bits"):
            kind(bits=4, group_size=8)(network)
    with pytest.raises(ValueError, match=r"is quantized already .*whole numbers do not learn"):
        FakeQuantize()(network)


def test_plain_data_make_the_same_surgery() -> None:
    for surgery in (FakeQuantize(exclude=["query"]), Quantize(activations="static", smooth=True)):
        assert from_spec(to_spec(surgery)) == surgery
    ledger = [to_spec(FakeQuantize(bits=4)), to_spec(LowRank({"query": 2}))]
    first, second = converted(ledger)
    assert from_spec(first) == Quantize(bits=4) and second == ledger[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 3}, "bits must be 8 or 4, got 3"),
        ({"bits": True}, "bits must be 8 or 4, got True"),
        ({"group_size": -1}, "group_size must be at least 0"),
        ({"activations": "static"}, "activations must be one of None, per_token, per_tensor, got"),
        ({"activations": "tokens"}, "activations must be one of"),
    ],
)
def test_what_lies_outside_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FakeQuantize(**settings)


def test_groups_that_do_not_fit_name_the_layer() -> None:
    network = build("bert")
    with pytest.raises(ValueError, match=r"query cannot be quantized: group_size is 5, which does"):
        Quantize(embeddings=False, group_size=5)(network)
    assert not quantized_layers(network)


def test_ties_stay_ties() -> None:
    for name in ("masked", "gpt2", "t5"):
        network = build(name)
        Quantize(activations=None)(network)
        table, head = network.get_input_embeddings(), network.get_output_embeddings()
        assert table.weight is head.weight and table.scale is head.scale
        assert table.weight.dtype == torch.int8
        make_float(network)
        table, head = network.get_input_embeddings(), network.get_output_embeddings()
        assert type(table) is nn.Embedding and table.weight is head.weight


def test_what_wraps_a_layer_stays_and_the_layer_inside_is_replaced() -> None:
    pytest.importorskip("peft")
    from lmkit.surgery.lora import LoRA

    orders = []
    for first, second in (
        (LoRA(targets=["query"], rank=2), FakeQuantize()),
        (FakeQuantize(), LoRA(targets=["query"], rank=2)),
    ):
        network = build("bert")
        first(network)
        second(network)
        inside = network.bert.encoder.layer[0].attention.self.query.base_layer
        assert type(inside).__name__ == "FakeQuantizedLinear"
        orders.append(logits(network))
    assert torch.equal(orders[0], orders[1])


def test_a_low_rank_layer_is_refused_with_what_to_do() -> None:
    network = build("bert")
    LowRank({"ffn_output": 3})(network)
    with pytest.raises(ValueError, match=r"is a product of rank 3.*leave it out \(exclude\).*ONNX"):
        Quantize()(network)
    Quantize(exclude=["ffn_output"])(network)
    assert len(quantized_layers(network)) == 2 * 5 + 1


def test_pruned_weights_stay_zero() -> None:
    network = build("bert")
    layer = network.bert.encoder.layer[0].output.dense
    with torch.no_grad():
        layer.weight[torch.rand_like(layer.weight) < 0.5] = 0
    zeros = layer.weight == 0
    for settings in ({}, {"bits": 4, "group_size": 8}):
        rounded = copy.deepcopy(network)
        Quantize(**settings)(rounded)  # type: ignore[arg-type]
        made: Any = rounded.bert.encoder.layer[0].output.dense
        assert not made.whole()[zeros].any() and not made.rounded()[zeros].any()


def test_gradients_are_those_of_the_rounded_weights() -> None:
    network = build("bert")
    learns = copy.deepcopy(network)
    FakeQuantize(activations=None)(learns)
    rounded = copy.deepcopy(learns)
    make_float(rounded)
    for each in (learns, rounded):
        logits(each).square().sum().backward()
    theirs = dict(rounded.named_parameters())
    for name, parameter in learns.named_parameters():
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, theirs[name].grad, atol=1e-6), name


def test_an_unknown_layer_names_what_is_near() -> None:
    network = build("bert")
    with pytest.raises(NothingMatchedError, match=r"no module matches \['quary'\].*query"):
        Quantize(["quary"])(network)
    with pytest.raises(NothingMatchedError, match=r"no module matches \['intermediat'\].*interm"):
        Quantize(exclude=["intermediat"])(network)
