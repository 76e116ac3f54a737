"""The weight of a layer with its adapters is what the layer computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lmkit.surgery.effective_weight import changed_weights, wrappers
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.lora import VARIANTS, LoRA
from tests.surgery.test_folding import train


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_unit_vectors_show_the_weight(variant: str, order: int) -> None:
    torch.manual_seed(0)
    network: Any = nn.ModuleDict({"q_proj": nn.Linear(5, 4)})
    spec = LoRA("a", ["query"], 2, variant=variant)
    both = [IA3("b", ["query"], []), spec] if variant not in ("pissa", "olora") else [spec]
    for surgery in both[::order]:
        surgery(network)
    train(network)
    layer = network["q_proj"].eval()
    made = changed_weights("q_proj", layer)
    with torch.no_grad():
        zero = layer(torch.zeros(1, 5))
        shown = (layer(torch.eye(5)) - zero).T
    assert (made["weight"] - shown).abs().max() < 1e-6
    assert (made["bias"] - zero[0]).abs().max() < 1e-6


def test_nothing_active_changes_nothing_and_integers_are_refused() -> None:
    network: Any = nn.ModuleDict({"q_proj": nn.Linear(2, 2)})
    LoRA("a", ["query"], rank=2)(network)
    layer = network["q_proj"]
    assert len([*wrappers(layer)]) == 1
    layer.base_layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"q_proj has a weight of torch\.int8"):
        changed_weights("q_proj", layer)
    layer.adapter_weights = {}
    assert changed_weights("q_proj", layer) == {}
