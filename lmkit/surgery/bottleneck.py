"""Bottleneck adapters, and the layer that wraps a projection and adds what they compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ..functional.kronecker import kronecker_weight
from .base import replace_module
from .wrapped_layer import WrappedLayer

__all__ = ["ACTIVATIONS", "AdaptedLayer", "Bottleneck", "Handover", "adapt", "layer_width"]

#: What stands between the two projections of an adapter.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class Handover:
    """Carries the input of a feed-forward block from its first projection to its last.

    Both hold the same object, in a copy of the network the same copy. It is empty between two
    calls, and copies and pickles as empty.

    Args:
        width: of the input.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.held: Tensor | None = None

    def __reduce__(self) -> Any:
        return (Handover, (self.width,))

    def take(self) -> Tensor:
        """Return what was handed over, and keep no reference to it."""
        held, self.held = self.held, None
        if held is None:
            raise RuntimeError(
                "the last projection of a feed-forward block was called without its first, whose "
                "input the parallel adapter reads"
            )
        return held


class Bottleneck(nn.Module):
    r"""Computes $s \, (W_u \, \mathrm{drop}(\sigma(W_d x + b_d)) + b_u)$, at first zero.

    $W_d$ starts as that of an `nn.Linear`, the biases and $W_u$ at zero. With a `rule` each weight
    is $\sum_i A_i \otimes (s_i t_i)$ with the shared rule as $A_i$. The $s_i$ are normal then, the
    $t_i$ of $W_d$ uniform, with the variance that $W_d$ has otherwise, and those of $W_u$ zero.

    Args:
        inside: width of $x$.
        outside: width of the result.
        size: of the bottleneck.
        activation: a name of `ACTIVATIONS`.
        scale: $s$.
        dropout: of the bottleneck's activations, in `[0, 1)`.
        reads_input: whether $x$ is the input of the feed-forward block, not the layer's output.
        rule: $A$, `[n, n, n]`, shared with other adapters, and `None` for plain matrices.
        rank: of $s_i t_i$.

    Example:
        >>> adapter = Bottleneck(8, 8, size=2)
        >>> adapter(torch.ones(1, 8)).abs().max().item()
        0.0
    """

    def __init__(
        self,
        inside: int,
        outside: int,
        size: int,
        activation: str = "gelu",
        scale: float = 1.0,
        dropout: float = 0.0,
        reads_input: bool = False,
        rule: nn.Parameter | None = None,
        rank: int = 1,
    ) -> None:
        super().__init__()
        self.activation, self.scale, self.reads_input = activation, scale, reads_input
        self.rule = rule
        bound = 1 / math.sqrt(inside)
        if rule is None:
            self.down = nn.Parameter(torch.empty(size, inside).uniform_(-bound, bound))
            self.up = nn.Parameter(torch.zeros(outside, size))
        else:
            n, spread = len(rule), 1 / math.sqrt(rank)
            self.down_rows = nn.Parameter(torch.randn(n, size // n, rank) * spread)
            columns = torch.empty(n, rank, inside // n).uniform_(-bound, bound)
            self.down_columns = nn.Parameter(columns)
            self.up_rows = nn.Parameter(torch.randn(n, outside // n, rank) * spread)
            self.up_columns = nn.Parameter(torch.zeros(n, rank, size // n))
        self.down_bias = nn.Parameter(torch.zeros(size))
        self.up_bias = nn.Parameter(torch.zeros(outside))
        self.dropout = nn.Dropout(dropout)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return the weights: down `[size, inside]` and up `[outside, size]`."""
        if self.rule is None:
            return self.down, self.up
        return (
            kronecker_weight(self.rule, self.down_rows, self.down_columns),
            kronecker_weight(self.rule, self.up_rows, self.up_columns),
        )

    def forward(self, x: Tensor, learn: bool = True) -> Tensor:
        """Return what is added, `[..., outside]`.

        Args:
            x: float `[..., inside]`.
            learn: whether the weights get a gradient; `x` has its own in any case.
        """
        weights = (*self.matrices(), self.down_bias, self.up_bias)
        down, up, down_bias, up_bias = weights if learn else (w.detach() for w in weights)
        narrow = ACTIVATIONS[self.activation](functional.linear(x, down, down_bias))
        added = functional.linear(self.dropout(narrow), up, up_bias)
        return added if self.scale == 1 else self.scale * added


class AdaptedLayer(WrappedLayer):
    r"""A projection with named adapters behind it: $y + \sum_a w_a \, \mathrm{adapter}_a(y)$.

    $y$ is what the projection gives; all adapters read it (or the input of the feed-forward
    block), none reads another's result. Which are active, and the weights $w_a$, is no part of the
    state dict.

    Args:
        base_layer: a projection, or what wraps one.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        # Mixtures of adapters by attention, and from what surgery each name came.
        self.fusions = nn.ModuleDict()
        self.origins: dict[str, Any] = {}
        self.gives: Handover | None = None
        self.takes: Handover | None = None

    @property
    def in_features(self) -> int:
        """Width of what the projection reads."""
        return layer_width(self.base_layer)[0]

    @property
    def out_features(self) -> int:
        """Width of what the projection gives."""
        return layer_width(self.base_layer)[1]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the projection of `x` with what the active adapters add, `[..., out_features]`."""
        if self.gives is not None:
            self.gives.held = x
        output: Tensor = self.base_layer(x, *args, **kwargs)
        entered = output if self.takes is None else self.takes.take()
        result = output
        for name, weight in self.weights.items():
            added = self._added(name, output, entered)
            result = result + (added if weight == 1 else weight * added)
        return result

    def _added(self, name: str, output: Tensor, entered: Tensor, learn: bool = True) -> Tensor:
        if name in self.fusions:
            fusion = cast(Any, self.fusions[name])
            learning = {part: part not in fusion.constant for part in fusion.names}
            parts = [self._added(part, output, entered, each) for part, each in learning.items()]
            return cast(Tensor, fusion(output, parts))
        adapter = cast(Bottleneck, self.adapters[name])
        return cast(Tensor, adapter(entered if adapter.reads_input else output, learn))


def adapt(network: nn.Module, name: str) -> AdaptedLayer:
    """Return the adapted layer at a dotted name; wrap what is there if it is none yet.

    Args:
        network: changed in place.
        name: of a projection, or of what wraps one.
    """
    layer: Any = network.get_submodule(name)
    inner = layer
    while hasattr(inner, "base_layer") and not isinstance(inner, AdaptedLayer):
        inner = inner.base_layer
    if isinstance(inner, AdaptedLayer):
        return inner
    adapted = AdaptedLayer(layer)
    replace_module(network, name, adapted)
    return adapted


def layer_width(layer: Any) -> tuple[int, int]:
    """Return the widths of a projection's input and output, wrapped or not.

    Example:
        >>> layer_width(AdaptedLayer(nn.Linear(3, 2)))
        (3, 2)
    """
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    return int(layer.in_features), int(layer.out_features)
