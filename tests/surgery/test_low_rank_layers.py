"""A low-rank layer computes what the dense layer with the product as its weight computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lmkit.surgery.low_rank_layers import LowRankEmbedding, LowRankLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_it_computes_the_product_and_becomes_it(bias: bool, turned: bool) -> None:
    layer = LowRankLinear(6, 4, 2, bias, turned, dtype=torch.float64)
    if bias:
        nn.init.normal_(layer.bias)
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    expected = x @ (layer.up @ layer.down).T + (layer.bias if bias else 0)
    assert torch.allclose(layer(x), expected, atol=1e-14)
    assert torch.equal(layer.weight, layer.up @ layer.down)
    dense: Any = layer.eval().dense()
    assert type(dense) is (Conv1D if turned else nn.Linear) and not dense.training
    assert dense.bias is layer.bias
    if bias or not turned:  # a Conv1D always has one
        assert torch.allclose(dense(x), expected, atol=1e-14)
    plain: Any = Conv1D(4, 6) if turned else nn.Linear(6, 4, bias)
    assert repr(dense) == repr(plain) and dense.weight.shape == plain.weight.shape


def test_only_the_factors_are_its_own() -> None:
    layer = LowRankLinear(6, 4, 2)
    assert list(layer.state_dict()) == ["up", "down", "bias"]
    assert (layer.in_features, layer.out_features) == (6, 4)
    assert isinstance(layer, nn.Linear)  # whatever wraps a linear layer wraps it
    with pytest.raises(KeyError, match="already exists"):
        layer.weight = nn.Parameter(torch.zeros(4, 6))  # type: ignore[misc]
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.weight, layer.weight) and twin.up is not layer.up


def test_new_factors_have_the_variance_of_a_new_layer() -> None:
    torch.manual_seed(0)
    dense, layer = nn.Linear(300, 400), LowRankLinear(300, 400, 50)
    ratio = layer.weight.detach().std() / dense.weight.detach().std()
    assert float(ratio) == pytest.approx(1.0, abs=0.05)
    table = LowRankEmbedding(300, 200, 50)
    assert float(table.weight.detach().std()) == pytest.approx(1.0, abs=0.05)


def test_a_table_looks_up_the_product_and_becomes_it() -> None:
    table = LowRankEmbedding(9, 6, 2, padding_idx=0, dtype=torch.float64)
    ids = torch.tensor([[3, 0, 8], [1, 1, 0]])
    expected = (table.table @ table.up.T)[ids]
    assert torch.allclose(table(ids), expected, atol=1e-14)
    assert not table(ids)[0, 1].any()
    dense: Any = table.dense()
    assert type(dense) is nn.Embedding and repr(dense) == repr(nn.Embedding(9, 6, 0))
    assert torch.allclose(dense(ids), expected, atol=1e-14)
    table(ids).sum().backward()
    assert table.table.grad is not None and not table.table.grad[0].any()
    assert table.table.grad[3].any()


def test_frozen_factors_become_a_frozen_weight() -> None:
    for layer in (LowRankLinear(6, 4, 2), LowRankEmbedding(9, 6, 2)):
        layer.requires_grad_(False)
        assert not any(p.requires_grad for p in layer.dense().parameters())


def test_half_precision_is_multiplied_out_in_full() -> None:
    layer = LowRankLinear(64, 48, 16, dtype=torch.bfloat16)
    product = (layer.up.double() @ layer.down.double()).to(torch.bfloat16)
    assert torch.equal(layer.dense().weight, product)
