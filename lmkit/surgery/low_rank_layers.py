"""Layers whose weight is the product of two narrow matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

__all__ = ["LowRankEmbedding", "LowRankLinear"]


class LowRankLinear(nn.Linear):
    r"""A linear layer with $W \approx A B$: computes $A (B x) + b$.

    Whatever wraps a linear layer wraps this one: it has the widths of the layer that it stands for.
    Its weights start at random, so that $A B$ has the variance of a new `nn.Linear`;
    `lmkit.surgery.low_rank.put_factors` gives it those of a decomposition.

    Args:
        in_features: $i$.
        out_features: $o$.
        rank: $r$.
        bias: whether there is $b$.
        turned: whether it stands for a `Conv1D` of transformers, whose weight is turned.
        device: of the weights.
        dtype: of the weights.

    Example:
        >>> layer = LowRankLinear(6, 4, rank=2)
        >>> [(name, tuple(p.shape)) for name, p in layer.named_parameters()]
        [('up', (4, 2)), ('down', (2, 6)), ('bias', (4,))]
        >>> layer(torch.ones(3, 6)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        turned: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.rank, self.turned = rank, turned
        how = {"device": device, "dtype": dtype}
        self.up = nn.Parameter(torch.empty(out_features, rank, **how))
        self.down = nn.Parameter(torch.empty(rank, in_features, **how))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features, **how)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both factors anew."""
        inside, between = 1 / math.sqrt(self.in_features), math.sqrt(3 / self.rank)
        nn.init.uniform_(self.down, -inside, inside)
        nn.init.uniform_(self.up, -between, between)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """$A B$, `[o, i]`, computed anew each time."""
        return self.up @ self.down

    def forward(self, x: Tensor) -> Tensor:
        """Return $A (B x) + b$, `[..., o]`, for `x` of `[..., i]`."""
        return functional.linear(functional.linear(x, self.down), self.up, self.bias)

    @torch.no_grad()
    def dense(self) -> nn.Module:
        """Make the layer that this one stands for, with $A B$ as its weight."""
        product = (self.up.double() @ self.down.double()).to(self.up.dtype)
        layer: Any = Conv1D(1, 1) if self.turned else nn.Linear(1, 1, bias=False)
        if self.turned:
            layer.nx, layer.nf, product = self.in_features, self.out_features, product.T
        else:
            layer.in_features, layer.out_features = self.in_features, self.out_features
        layer.weight = nn.Parameter(product.contiguous(), requires_grad=self.up.requires_grad)
        layer.bias = self.bias
        made: nn.Module = layer.train(self.training)
        return made

    def extra_repr(self) -> str:
        """Say the widths and the rank."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}"
        )


class LowRankEmbedding(nn.Embedding):
    r"""A table of embeddings with $E \approx A B$: looks up rows of $A$ and widens them by $B$.

    As ALBERT's (arXiv:1909.11942), whose two matrices are trained from the start.

    Args:
        num_embeddings: $V$.
        embedding_dim: $D$.
        rank: $r$.
        padding_idx: row of $A$ that gets no gradient.
        device: of the weights.
        dtype: of the weights.

    Example:
        >>> table = LowRankEmbedding(9, 4, rank=2)
        >>> [(name, tuple(p.shape)) for name, p in table.named_parameters()]
        [('table', (9, 2)), ('up', (4, 2))]
        >>> torch.allclose(table(torch.tensor([[3, 1]])), table.weight[[3, 1]])
        True
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.rank, self.padding_idx = rank, padding_idx
        self.max_norm, self.norm_type = None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        how = {"device": device, "dtype": dtype}
        self.table = nn.Parameter(torch.empty(num_embeddings, rank, **how))
        self.up = nn.Parameter(torch.empty(embedding_dim, rank, **how))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both factors anew."""
        nn.init.normal_(self.table)
        nn.init.normal_(self.up, std=1 / math.sqrt(self.rank))
        self._fill_padding_idx_with_zero()

    def _fill_padding_idx_with_zero(self) -> None:
        if self.padding_idx is not None:
            with torch.no_grad():
                self.table[self.padding_idx].fill_(0)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """$A B$, `[V, D]`, computed anew each time."""
        return self.table @ self.up.T

    def forward(self, input: Tensor) -> Tensor:
        """Return the embeddings `[..., D]` of ids `[...]`."""
        return functional.linear(functional.embedding(input, self.table, self.padding_idx), self.up)

    @torch.no_grad()
    def dense(self) -> nn.Module:
        """Make the table that this one stands for, with $A B$ as its weight."""
        product = (self.table.double() @ self.up.double().T).to(self.table.dtype)
        made = nn.Embedding(1, 1)
        made.num_embeddings, made.embedding_dim = self.num_embeddings, self.embedding_dim
        made.padding_idx = self.padding_idx
        made.weight = nn.Parameter(product, requires_grad=self.table.requires_grad)
        return made.train(self.training)

    def extra_repr(self) -> str:
        """Say the widths and the rank."""
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}"
