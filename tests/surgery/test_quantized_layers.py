"""Layers of whole numbers take a quarter of the bytes, and learn nothing of their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lmkit.surgery.fake_quantized_layers import (
    FakeQuantizedConv1D,
    FakeQuantizedEmbedding,
    FakeQuantizedLinear,
)
from lmkit.surgery.quantization_scheme import Scheme
from lmkit.surgery.quantized_layers import (
    QuantizedEmbedding,
    QuantizedLinear,
    SmoothedLinear,
    make_dense_layer,
)

GRIDS = [(8, 0), (8, 8), (4, 0), (4, 8)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ["linear", "conv1d", "table"])
def test_they_compute_what_the_layer_before_rounds_to(grid: tuple[int, int], kind: str) -> None:
    scheme = Scheme(*grid, None if kind == "table" else "per_token")
    if kind == "table":
        plain: Any = nn.Embedding(9, 16)
        learns: Any = FakeQuantizedEmbedding(plain, scheme)
        x, whole = torch.tensor([[1, 8, 1]]), QuantizedEmbedding(plain, scheme)
    else:
        plain = nn.Linear(16, 6) if kind == "linear" else Conv1D(6, 16)
        make: Any = FakeQuantizedLinear if kind == "linear" else FakeQuantizedConv1D
        learns, x = make(plain, scheme), torch.randn(3, 5, 16)
        whole = QuantizedLinear(plain, scheme)
    assert torch.equal(whole(x), learns(x))
    assert torch.equal(whole.rounded(), learns.rounded())
    assert whole.weight.dtype == torch.int8 and not whole.weight.requires_grad
    assert whole.whole().shape == (9 if kind == "table" else 6, 16)
    assert whole.weight.numel() * (8 // grid[0]) == whole.whole().numel()


def test_an_odd_number_of_inputs_is_packed_too() -> None:
    plain, x = nn.Linear(7, 3), torch.randn(2, 7)
    layer = QuantizedLinear(plain, Scheme(bits=4))
    assert layer.weight.shape == (3, 4)
    assert torch.equal(layer(x), FakeQuantizedLinear(plain, Scheme(bits=4))(x))


def test_biases_and_what_stands_below_learn_on() -> None:
    below, layer = nn.Linear(8, 8), QuantizedLinear(nn.Linear(8, 4), Scheme())
    layer(below(torch.randn(2, 8))).sum().backward()
    assert below.weight.grad is not None and below.weight.grad.abs().sum() > 0
    assert layer.bias.grad is not None and layer.weight.grad is None


def test_states_come_back_from_plain_tensors(tmp_path: Any) -> None:
    first = QuantizedLinear(nn.Linear(8, 4), Scheme(activations="static", smooth=True))
    first.smooth.uniform_(0.5, 2)
    first.input_scale.fill_(0.1)
    first.input_zero_point.fill_(7)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = QuantizedLinear(nn.Linear(8, 4), Scheme(activations="static", smooth=True))
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    x = torch.randn(3, 8)
    assert torch.equal(first(x), second(x))
    assert set(first.state_dict()) == {
        *("weight", "scale", "bias", "smooth", "input_scale", "input_zero_point")
    }


def test_a_static_range_clips_what_lies_outside() -> None:
    plain = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        plain.weight.fill_(1.27)
    layer = QuantizedLinear(plain, Scheme(activations="static"))
    layer.input_scale.fill_(0.01)
    layer.input_zero_point.fill_(55)
    x = torch.tensor([[-9.0], [0.014], [9.0]])
    # 55 steps down from zero, and 200 up.
    assert torch.allclose(layer(x) / 1.27, torch.tensor([[-0.55], [0.01], [2.0]]), atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_dense_layer_reads_plain_inputs_again(kind: str) -> None:
    plain: Any = nn.Linear(8, 4) if kind == "linear" else Conv1D(4, 8)
    layer = QuantizedLinear(plain, Scheme(smooth=True))
    layer.smooth.uniform_(0.5, 2)
    dense, x = make_dense_layer(layer), torch.randn(3, 8)
    assert type(dense) is type(plain) and dense.weight.shape == plain.weight.shape
    assert torch.allclose(dense(x), layer(x), atol=1e-6)
    assert dense.weight.requires_grad and dense.weight.is_floating_point()
    kept = SmoothedLinear(layer)
    assert torch.equal(kept(x), layer(x)) and torch.equal(kept.weight, layer.rounded())


def test_a_frozen_weight_stays_frozen() -> None:
    plain = nn.Linear(8, 4).requires_grad_(False)
    assert not make_dense_layer(FakeQuantizedLinear(plain, Scheme())).weight.requires_grad
