"""Parameters are counted as they will be gone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lmkit.surgery.lora import LoRA
from lmkit.surgery.structured_pruning import RemoveUnits
from lmkit.surgery.unit_costs import (
    count_layer_parameters,
    layer_parameters,
    queries_per_unit,
    without_weights,
)
from lmkit.surgery.units import find_units
from tests.surgery.pruned import NETWORKS, build, some


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_left_is_known_before_anything_is_removed(name: str) -> None:
    network = build(name)
    units = find_units(network)
    known = count_layer_parameters(network, units)
    assert known.total == layer_parameters(network)
    kept = some(units)
    pruned = copy.deepcopy(network)
    RemoveUnits(kept)(pruned)
    expected = layer_parameters(pruned)
    assert known.left(units, {name: len(indices) for name, indices in kept.items()}) == expected
    assert known.left(units, {}) == known.total
    whole = sum(p.numel() for p in network.parameters())
    assert whole - sum(p.numel() for p in pruned.parameters()) == known.total - expected


def test_a_head_of_bert_is_its_rows_and_columns() -> None:
    known = count_layer_parameters(build("bert"), find_units(build("bert")))
    # Of width 4 in 16: three times 4 rows of 16 with their biases, and 4 columns of 16.
    assert set(known.per_unit.values()) == {3 * (4 * 16 + 4) + 4 * 16, 16 + 1 + 16}


def test_a_copy_without_weights_is_alike_and_costs_nothing() -> None:
    network = build("t5")
    copied = without_weights(network)
    assert {n: p.shape for n, p in copied.named_parameters()} == {
        n: p.shape for n, p in network.named_parameters()
    }
    assert all(p.device.type == "meta" for p in copied.parameters())
    assert copied.shared.weight is copied.encoder.embed_tokens.weight
    assert all(p.device.type == "cpu" for p in network.parameters())
    frozen: Any = without_weights(nn.Linear(2, 2).requires_grad_(False))
    assert not frozen.weight.requires_grad


def test_what_cannot_be_cut_is_told() -> None:
    network = build("bert", torch.float32)
    LoRA(targets=["query"], rank=2)(network)
    with pytest.raises(ValueError, match="is wrapped by"):
        count_layer_parameters(network, find_units(network))
    count_layer_parameters(network, find_units(network, ["ffn"]))


def test_heads_that_share_keys_are_counted_as_queries() -> None:
    assert set(queries_per_unit(build("llama")).values()) == {2}
    assert set(queries_per_unit(build("bert")).values()) == {1}
