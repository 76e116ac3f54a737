"""Layers that round their weights and what they read, and learn all the same."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ..functional.quantization import fake_quantize_weight
from .quantization_scheme import Scheme, add_buffers, check_groups, round_input, take_sizes

__all__ = ["FakeQuantizedConv1D", "FakeQuantizedEmbedding", "FakeQuantizedLinear"]


class FakeQuantizedLinear(nn.Linear):
    r"""A linear layer with rounded weight and inputs: $\hat x \hat W^\top + b$.

    The gradients are those of $W$ and $x$, straight through the rounding. It has the weights of the
    plain layer, by name too, and both share them.

    Args:
        layer: the plain layer.
        scheme: to which numbers.

    Raises:
        ValueError: the groups do not fit.

    Example:
        >>> layer = FakeQuantizedLinear(nn.Linear(4, 2), Scheme(activations="per_token"))
        >>> list(layer.state_dict()), layer.rounded().shape
        (['weight', 'bias'], torch.Size([2, 4]))
    """

    def __init__(self, layer: nn.Linear, scheme: Scheme) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scheme = scheme
        check_groups(scheme, layer.in_features)
        add_buffers(self, scheme, layer.in_features, layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., o]` for `x` of `[..., i]`."""
        return functional.linear(round_input(self, x), self.rounded(), self.bias)

    def rounded(self) -> Tensor:
        """Return the rounded weight, `[o, i]`."""
        return fake_quantize_weight(self.weight, *self.scheme.grid)

    def extra_repr(self) -> str:
        """Say the widths and the numbers."""
        return f"{super().extra_repr()}, {self.scheme}"


class FakeQuantizedConv1D(Conv1D):
    """A `Conv1D` of transformers, whose weight is turned, as a `FakeQuantizedLinear`.

    Args:
        layer: the plain layer.
        scheme: to which numbers.

    Raises:
        ValueError: the groups do not fit.

    Example:
        >>> FakeQuantizedConv1D(Conv1D(2, 4), Scheme()).rounded().shape
        torch.Size([2, 4])
    """

    def __init__(self, layer: Any, scheme: Scheme) -> None:
        nn.Module.__init__(self)
        self.nx, self.nf = layer.nx, layer.nf
        self.weight, self.bias = layer.weight, layer.bias
        self.scheme = scheme
        check_groups(scheme, layer.nx)
        add_buffers(self, scheme, layer.nx, layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., o]` for `x` of `[..., i]`."""
        return functional.linear(round_input(self, x), self.rounded(), self.bias)

    def rounded(self) -> Tensor:
        """Return the rounded weight, turned back to `[o, i]`."""
        # Sums of products depend on how a weight lies in memory.
        return fake_quantize_weight(self.weight.T.contiguous(), *self.scheme.grid)

    def extra_repr(self) -> str:
        """Say the numbers."""
        return str(self.scheme)


class FakeQuantizedEmbedding(nn.Embedding):
    """A table of embeddings that rounds each row, with the gradient of the plain table.

    Args:
        table: the plain table, whose rows both share.
        scheme: of which bits and groups count.

    Raises:
        ValueError: the groups do not fit.

    Example:
        >>> table = FakeQuantizedEmbedding(nn.Embedding(9, 4), Scheme())
        >>> list(table.state_dict()), table.rounded().shape
        (['weight'], torch.Size([9, 4]))
    """

    def __init__(self, table: nn.Embedding, scheme: Scheme) -> None:
        nn.Module.__init__(self)
        take_sizes(self, table)
        self.weight, self.scheme = table.weight, scheme
        check_groups(scheme, table.embedding_dim)

    def forward(self, input: Tensor) -> Tensor:
        """Return the embeddings `[..., D]` of ids `[...]`."""
        return fake_quantize_weight(super().forward(input), *self.scheme.grid)

    def rounded(self) -> Tensor:
        """Return the rounded table, `[V, D]`."""
        return fake_quantize_weight(self.weight, *self.scheme.grid)

    def extra_repr(self) -> str:
        """Say the sizes and the numbers."""
        return f"{super().extra_repr()}, {self.scheme}"
