"""What wraps a layer of the base, and holds adapters of several names beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

__all__ = ["WrappedLayer"]


class WrappedLayer(nn.Module):
    """A layer of the base with named adapters, which are switched and weighed.

    Which are active, and their weights, is no part of the state dict.

    Args:
        base_layer: the layer, or what wraps it already.

    Example:
        >>> wrapped = WrappedLayer(nn.Linear(2, 2))
        >>> wrapped.adapters["a"] = nn.Linear(2, 2)
        >>> wrapped.use({"a": 0.5, "elsewhere": 1.0})
        >>> wrapped.active_adapters
        {'a': 0.5}
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapters = nn.ModuleDict()
        #: Mixtures of adapters by name; how they are mixed is the layer's own.
        self.fusions: Any = {}
        self.weights: dict[str, float] = {}

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Names of all adapters and fusions here, active or not."""
        return (*self.adapters, *self.fusions)

    @property
    def active_adapters(self) -> dict[str, float]:
        """Weights of the active adapters by name."""
        return dict(self.weights)

    # Networks look at these of their layers, T5 at a weight's type.
    @property
    def weight(self) -> Tensor:
        """The weight of the base's own layer."""
        return cast(Tensor, self.base_layer.weight)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the base's own layer."""
        return cast("Tensor | None", self.base_layer.bias)

    def use(self, weights: Mapping[str, float]) -> None:
        """Make adapters active with these weights, and no others; names from elsewhere are left."""
        self.weights = {
            name: float(weights[name]) for name in self.adapter_names if name in weights
        }
