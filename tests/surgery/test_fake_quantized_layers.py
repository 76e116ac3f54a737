"""Layers that learn to be rounded have the weights of the plain ones, and compute the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lmkit.functional.quantization import (
    fake_quantize_input,
    fake_quantize_weight,
    input_parameters,
)
from lmkit.surgery.fake_quantized_layers import (
    FakeQuantizedConv1D,
    FakeQuantizedEmbedding,
    FakeQuantizedLinear,
)
from lmkit.surgery.quantization_scheme import Scheme


@pytest.mark.parametrize("activations", [None, "per_token", "per_tensor"])
@pytest.mark.parametrize("grid", [(8, 0), (4, 4)])
def test_a_linear_layer_computes_the_formula(activations: Any, grid: tuple[int, int]) -> None:
    plain, x = nn.Linear(8, 6), torch.randn(3, 5, 8)
    layer = FakeQuantizedLinear(plain, Scheme(*grid, activations))
    read = x if activations is None else fake_quantize_input(x, *input_parameters(x, activations))
    expected = functional.linear(read, fake_quantize_weight(plain.weight, *grid), plain.bias)
    assert torch.equal(layer(x), expected)
    assert layer.weight is plain.weight and layer.bias is plain.bias


def test_a_conv1d_is_the_linear_layer_with_its_weight_turned() -> None:
    turned, x = Conv1D(6, 8), torch.randn(3, 5, 8)
    plain = nn.Linear(8, 6)
    with torch.no_grad():
        plain.weight.copy_(turned.weight.T)
        plain.bias.copy_(turned.bias)
    scheme = Scheme(activations="per_token")
    layer = FakeQuantizedConv1D(turned, scheme)
    assert torch.equal(layer(x), FakeQuantizedLinear(plain, scheme)(x))
    assert isinstance(layer, Conv1D) and layer.weight is turned.weight


def test_a_table_rounds_each_row_and_its_padding_learns_nothing() -> None:
    plain = nn.Embedding(9, 8, padding_idx=0)
    table = FakeQuantizedEmbedding(plain, Scheme(4, 4))
    ids = torch.tensor([[0, 3, 3, 8]])
    assert torch.equal(table(ids), fake_quantize_weight(plain.weight, 4, 4)[ids])
    table(ids).sum().backward()
    assert plain.weight.grad is not None
    counts = plain.weight.grad[:, 0].tolist()
    assert counts == [0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def test_smoothing_divides_what_is_read() -> None:
    plain, x = nn.Linear(8, 6), torch.randn(5, 8)
    layer = FakeQuantizedLinear(plain, Scheme(smooth=True))
    assert torch.equal(layer(x), FakeQuantizedLinear(plain, Scheme())(x))
    layer.smooth.fill_(2.0)
    assert torch.allclose(layer(x), FakeQuantizedLinear(plain, Scheme())(x / 2), atol=1e-6)
    assert "smooth" in layer.state_dict()


def test_torchao_rounds_a_layer_alike() -> None:
    qat = pytest.importorskip("torchao.quantization.qat")

    class AtOurSteps(nn.Module):
        """Rounds the weight as torchao's layer does, with its inputs rounded by torchao."""

        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            config = qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
            rounded = nn.Linear(8, 6)
            rounded.weight = nn.Parameter(fake_quantize_weight(layer.weight).detach())
            rounded.bias = layer.bias
            self.layer = qat.FakeQuantizedLinear.from_linear(rounded, config, None)

    plain, x = nn.Linear(8, 6), torch.randn(3, 5, 8)
    own = FakeQuantizedLinear(plain, Scheme(activations="per_token"))
    assert torch.equal(own(x), AtOurSteps(plain).layer(x))


def test_groups_that_do_not_fit_are_refused() -> None:
    for make in (
        lambda s: FakeQuantizedLinear(nn.Linear(8, 6), s),
        lambda s: FakeQuantizedConv1D(Conv1D(6, 8), s),
        lambda s: FakeQuantizedEmbedding(nn.Embedding(9, 8), s),
    ):
        with pytest.raises(ValueError, match="group_size is 3, which does not divide 8"):
            make(Scheme(group_size=3))
