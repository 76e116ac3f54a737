"""Layers of peft go beneath whatever wraps a layer, and change no flag but their own."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from lmkit.surgery.adapter import Adapter
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.injection import bare_layer, inject, origins, place, require_peft
from lmkit.surgery.lora import LoRA
from tests.surgery.adapted import bert, build

peft = pytest.importorskip("peft", reason="LoRA needs the extra peft")
QUERY = "bert.encoder.layer.0.attention.self.query"
OUTPUT = "bert.encoder.layer.0.output.dense"


def test_an_adapter_goes_into_the_layer_that_others_wrap() -> None:
    network = bert()
    inside = network.get_submodule(OUTPUT)
    assert place(network, OUTPUT) == OUTPUT
    Adapter("a", size=4)(network)
    assert place(network, OUTPUT) == f"{OUTPUT}.base_layer"
    LoRA("l", targets=["all"])(network)
    # A further one stands in the layer of peft that is there.
    assert place(network, OUTPUT) == f"{OUTPUT}.base_layer"
    assert bare_layer(network.get_submodule(OUTPUT)) is inside
    with pytest.raises(ValueError, match="is a LayerNorm, and LoRA"):
        place(network, "bert.embeddings.LayerNorm")


def test_only_the_places_named_get_layers_and_no_flag_changes() -> None:
    network = bert()
    network.requires_grad_(False)
    network.classifier.bias.requires_grad_(True)
    # Ends of these names are names of other layers.
    config = peft.LoraConfig(r=2)
    layers = inject(network, LoRA("x"), config, [QUERY])
    assert list(layers) == [QUERY]
    found = [name for name, m in network.named_modules() if hasattr(m, "merged_adapters")]
    assert found == [QUERY]
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"classifier.bias", *(f"{QUERY}.lora_{x}.x.weight" for x in "AB")}
    assert not hasattr(network, "peft_config") and not layers[QUERY].training


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_keeps_its_mode(training: bool) -> None:
    network = build("gpt2").train(training)
    LoRA(dropout=0.5)(network)
    IA3()(network)
    assert {module.training for module in network.modules()} == {training}


def test_each_surgery_is_remembered_by_kind_and_name() -> None:
    network, kinds = bert(), [LoRA("x"), LoRA("y", rank=2), IA3("x")]
    assert origins(network, LoRA) == {}
    for kind in kinds:
        kind(network)
    assert origins(network, LoRA) == {"x": kinds[0], "y": kinds[1]}
    assert origins(network, IA3) == {"x": kinds[2]}


def test_each_adapter_of_a_layer_keeps_its_own_scale() -> None:
    network = bert()
    LoRA("x", rank=2, alpha=3.0)(network)
    LoRA("y", rank=4, alpha=1.0, variant="rslora")(network)
    layer: Any = network.get_submodule(QUERY)
    assert layer.own_scaling == {"x": 1.5, "y": 0.5} == dict(layer.scaling)


def test_a_layer_without_wrapping_is_its_own() -> None:
    layer = nn.Linear(2, 2)
    assert bare_layer(layer) is layer
    network = nn.ModuleList([nn.ModuleDict({"q_proj": layer})])
    LoRA(targets=["query"], rank=1)(network)
    assert bare_layer(network[0]["q_proj"]) is layer
    assert torch.equal(network[0]["q_proj"](x := torch.randn(3, 2)), layer(x))


def test_the_extra_is_named_where_peft_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    require_peft()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'lmkit\[peft\]'"):
        require_peft()
