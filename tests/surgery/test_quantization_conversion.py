"""Layers become others of the same weights, with ties and modes as they were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from lmkit.surgery.quantization import FakeQuantize, Quantize
from lmkit.surgery.quantization_conversion import (
    convert,
    fake_quantized_layers,
    layer_inputs,
    make_float,
    quantized_layers,
    stored_bytes,
)
from lmkit.surgery.quantization_ranges import put_calibration, scale_weights
from lmkit.surgery.quantized_layers import SmoothedLinear
from tests.surgery.adapted import build, logits


@pytest.mark.parametrize("name", ["bert", "masked", "gpt2"])
@pytest.mark.parametrize("scheme", [{}, {"bits": 4}, {"bits": 4, "group_size": 8}])
def test_the_bytes_are_those_of_a_file(name: str, scheme: dict[str, Any]) -> None:
    network = build(name)
    plain = stored_bytes(network)
    FakeQuantize(activations=None, **scheme)(network)
    planned = stored_bytes(network)
    convert(network)
    assert stored_bytes(network) == planned < 0.75 * plain
    own = {id(t): t for t in (*network.parameters(), *network.buffers())}
    written = {str(n): t.detach().clone().contiguous() for n, t in enumerate(own.values())}
    # Beside the numbers a file has their names and shapes, 8 to 100 bytes each.
    assert 0 <= len(save(written)) - planned < 110 * len(written)


def test_factors_of_inputs_are_kept_or_undone() -> None:
    network = build("bert")
    rounded = copy.deepcopy(network)
    factors = {
        name: torch.rand(layer_inputs(layer)) + 0.5
        for name, layer in FakeQuantize().layers(network).items()
        if not isinstance(layer, nn.Embedding)
    }
    scale_weights(rounded, factors)
    Quantize(activations=None, smooth=True)(rounded)
    put_calibration(rounded, factors)
    said = logits(rounded)
    gap = (said - logits(network)).abs().max()
    assert 0 < gap < 0.1 * logits(network).abs().max()
    kept, undone = copy.deepcopy(rounded), copy.deepcopy(rounded)
    make_float(kept, smoothed=True)
    make_float(undone)
    assert torch.equal(logits(kept), said)
    assert (logits(undone) - said).abs().max() < 1e-6
    kinds = {type(m) for m in kept.modules()} & {SmoothedLinear}
    assert kinds and not any(isinstance(m, SmoothedLinear) for m in undone.modules())
    assert undone.state_dict().keys() == network.state_dict().keys()


def test_layers_are_listed_by_what_they_hold() -> None:
    network = build("bert")
    assert not fake_quantized_layers(network) and not quantized_layers(network)
    FakeQuantize(["query"], embeddings=False)(network)
    assert len(fake_quantized_layers(network)) == 2 and not quantized_layers(network)
    Quantize(["key"], embeddings=False)(network)
    assert len(fake_quantized_layers(network)) == len(quantized_layers(network)) == 2
    convert(network)
    assert not fake_quantized_layers(network) and len(quantized_layers(network)) == 4
    make_float(network)
    assert not quantized_layers(network)


def test_modes_and_frozen_weights_stay() -> None:
    network = build("bert").train()
    network.bert.encoder.layer[0].eval()
    network.bert.encoder.layer[1].requires_grad_(False)
    FakeQuantize()(network)
    flags = {name: p.requires_grad for name, p in network.named_parameters()}
    assert not any(flag for name, flag in flags.items() if ".layer.1." in name)
    assert not network.bert.encoder.layer[0].output.dense.training
    assert network.bert.encoder.layer[1].output.dense.training
    make_float(network)
    assert {name: p.requires_grad for name, p in network.named_parameters()} == flags
