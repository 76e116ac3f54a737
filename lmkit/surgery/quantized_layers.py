"""Layers that hold whole numbers in place of weights, and cannot learn them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ..functional.nibbles import pack_nibbles, unpack_nibbles
from ..functional.quantization import dequantize_weight, quantize_weight
from .quantization_scheme import Scheme, add_buffers, check_groups, round_input, take_sizes

__all__ = ["QuantizedEmbedding", "QuantizedLinear", "SmoothedLinear", "make_dense_layer"]


class QuantizedLinear(nn.Linear):
    r"""A linear layer of whole numbers, which computes what the layer before it rounds to.

    Its weight is int8 `[o, i]`, of 4 bits `[o, (i + 1) // 2]`, two in a byte; its scale `[o, g]`.
    Both are parameters that are not trained. A `Conv1D` of transformers is turned back.

    Args:
        layer: a plain layer, or one that learns to be rounded.
        scheme: to which numbers.

    Raises:
        ValueError: the groups do not fit.

    Example:
        >>> plain = nn.Linear(4, 2)
        >>> layer = QuantizedLinear(plain, Scheme())
        >>> layer.weight.dtype, bool((layer.rounded() - plain.weight).abs().max() < 0.01)
        (torch.int8, True)
    """

    scale: Tensor

    @torch.no_grad()
    def __init__(self, layer: Any, scheme: Scheme) -> None:
        nn.Module.__init__(self)
        self.turned = isinstance(layer, Conv1D)
        weight = layer.weight.T if self.turned else layer.weight
        self.out_features, self.in_features = weight.shape
        self.scheme = scheme
        check_groups(scheme, self.in_features)
        _hold(self, weight)
        self.register_parameter("bias", layer.bias)
        add_buffers(self, scheme, self.in_features, weight)
        for word in ("smooth", "input_scale", "input_zero_point"):
            known, own = getattr(layer, word, None), getattr(self, word)
            if known is not None and own is not None:
                own.copy_(known)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., o]` for `x` of `[..., i]`."""
        return functional.linear(round_input(self, x), self.rounded().to(x.dtype), self.bias)

    def whole(self) -> Tensor:
        """Return the weight as whole numbers, int8 `[o, i]`."""
        packed = self.scheme.packed
        return unpack_nibbles(self.weight, self.in_features) if packed else self.weight

    def rounded(self) -> Tensor:
        """Return the weight that the numbers stand for, `[o, i]`."""
        return dequantize_weight(self.whole(), self.scale)

    def extra_repr(self) -> str:
        """Say the widths and the numbers."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self.scheme}"
        )


class QuantizedEmbedding(nn.Embedding):
    """A table of embeddings in whole numbers, with a scale of each row, or of groups in it.

    Args:
        table: a plain table, or one that learns to be rounded.
        scheme: of which bits and groups count.

    Raises:
        ValueError: the groups do not fit.

    Example:
        >>> table = QuantizedEmbedding(nn.Embedding(9, 4), Scheme(bits=4))
        >>> table.weight.shape, table(torch.tensor([[3, 1]])).shape
        (torch.Size([9, 2]), torch.Size([1, 2, 4]))
    """

    scale: Tensor

    @torch.no_grad()
    def __init__(self, table: nn.Embedding, scheme: Scheme) -> None:
        nn.Module.__init__(self)
        take_sizes(self, table)
        self.scheme = scheme
        check_groups(scheme, table.embedding_dim)
        _hold(self, table.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Return the embeddings `[..., D]` of ids `[...]`."""
        rows = self.weight[input]
        rows = unpack_nibbles(rows, self.embedding_dim) if self.scheme.packed else rows
        return dequantize_weight(rows, self.scale[input])

    def whole(self) -> Tensor:
        """Return the table as whole numbers, int8 `[V, D]`."""
        packed = self.scheme.packed
        return unpack_nibbles(self.weight, self.embedding_dim) if packed else self.weight

    def rounded(self) -> Tensor:
        """Return the table that the numbers stand for, `[V, D]`."""
        return dequantize_weight(self.whole(), self.scale)

    def extra_repr(self) -> str:
        """Say the sizes and the numbers."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.scheme}"


class SmoothedLinear(nn.Linear):
    """A linear layer in floating-point numbers whose weight holds factors of its inputs.

    Args:
        layer: a smoothed layer, quantized or not.

    Example:
        >>> layer = SmoothedLinear(QuantizedLinear(nn.Linear(4, 2), Scheme(smooth=True)))
        >>> layer(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """

    smooth: Tensor

    @torch.no_grad()
    def __init__(self, layer: Any) -> None:
        nn.Module.__init__(self)
        weight = layer.rounded()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.detach().clone())
        self.register_parameter("bias", layer.bias)
        self.register_buffer("smooth", layer.smooth.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., o]` for `x` of `[..., i]`."""
        return super().forward(x / self.smooth.to(x.dtype))


@torch.no_grad()
def make_dense_layer(layer: Any) -> nn.Module:
    """Make the plain layer or table with the rounded weight; it reads plain inputs.

    Args:
        layer: quantized, or one that learns to be.

    Example:
        >>> make_dense_layer(QuantizedLinear(nn.Linear(4, 2), Scheme()))
        Linear(in_features=4, out_features=2, bias=True)
    """
    weight, made = layer.rounded(), _blank(layer)
    if getattr(layer, "smooth", None) is not None:
        weight = weight / layer.smooth.to(weight.dtype)
    weight = weight.T if isinstance(made, Conv1D) else weight
    learns = layer.weight.requires_grad or not layer.weight.is_floating_point()
    made.weight = nn.Parameter(weight.detach().contiguous().clone(), requires_grad=learns)
    if not isinstance(made, nn.Embedding):
        made.bias = layer.bias
    dense: nn.Module = made.train(layer.training)
    return dense


def _blank(layer: Any) -> Any:
    """Make a plain layer of the sizes of another, with a weight that is to be replaced."""
    made: Any
    if isinstance(layer, nn.Embedding):
        made = nn.Embedding(1, 1)
        take_sizes(made, layer)
    elif isinstance(layer, Conv1D) or getattr(layer, "turned", False):
        made = Conv1D(1, 1)
        sizes = (layer.nf, layer.nx) if isinstance(layer, Conv1D) else (None, None)
        made.nf, made.nx = sizes if sizes[0] else (layer.out_features, layer.in_features)
    else:
        made = nn.Linear(1, 1, bias=False)
        made.in_features, made.out_features = layer.in_features, layer.out_features
    return made


def _hold(layer: Any, weight: Tensor) -> None:
    """Let a layer hold a weight in whole numbers."""
    whole, scale = quantize_weight(weight.detach(), *layer.scheme.grid)
    whole = pack_nibbles(whole) if layer.scheme.packed else whole
    layer.weight = nn.Parameter(whole.contiguous(), requires_grad=False)
    layer.scale = nn.Parameter(scale.contiguous(), requires_grad=False)
