"""Layers that learn to be rounded, layers of whole numbers and plain ones: each from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from .base import replace_module
from .fake_quantized_layers import (
    FakeQuantizedConv1D,
    FakeQuantizedEmbedding,
    FakeQuantizedLinear,
)
from .quantization_scheme import Scheme
from .quantized_layers import (
    QuantizedEmbedding,
    QuantizedLinear,
    SmoothedLinear,
    make_dense_layer,
)

__all__ = [
    "FAKE",
    "WHOLE",
    "convert",
    "fake_quantized_layers",
    "layer_inputs",
    "make_float",
    "make_whole",
    "quantized_layers",
    "replace_all",
    "stored_bytes",
]

#: Layers that learn to be rounded, and layers of whole numbers.
FAKE = FakeQuantizedLinear | FakeQuantizedConv1D | FakeQuantizedEmbedding
WHOLE = QuantizedLinear | QuantizedEmbedding


def quantized_layers(network: nn.Module) -> dict[str, Any]:
    """Return the layers of a network that hold whole numbers, by name.

    Example:
        >>> quantized_layers(nn.Linear(2, 2))
        {}
    """
    return {name: m for name, m in network.named_modules() if isinstance(m, WHOLE)}


def fake_quantized_layers(network: nn.Module) -> dict[str, Any]:
    """Return the layers of a network that learn to be rounded, by name.

    Example:
        >>> fake_quantized_layers(nn.Linear(2, 2))
        {}
    """
    return {name: m for name, m in network.named_modules() if isinstance(m, FAKE)}


def stored_bytes(network: nn.Module) -> int:
    """Return how many bytes the numbers of a network take, as they will be when it is quantized.

    Example:
        >>> layer = nn.Linear(64, 64, bias=False)
        >>> network = nn.Sequential(FakeQuantizedLinear(layer, Scheme()))
        >>> stored_bytes(network)
        4352
    """
    planned = {
        id(layer.weight): layer.weight.numel() * layer.scheme.bits // 8
        + layer.weight.numel() // (layer.scheme.group_size or layer_inputs(layer)) * 4
        for layer in fake_quantized_layers(network).values()
    }
    known = {id(t): t for t in (*network.parameters(), *network.buffers())}
    return sum(planned.get(key, t.numel() * t.element_size()) for key, t in known.items())


def convert(network: nn.Module) -> None:
    """Make whole numbers of all layers that learned to be rounded; the network computes the same.

    Args:
        network: changed in place.

    Example:
        >>> network = nn.Sequential(FakeQuantizedLinear(nn.Linear(4, 2), Scheme()))
        >>> convert(network)
        >>> list(network.state_dict())
        ['0.weight', '0.scale', '0.bias']
    """
    replace_all(
        network, fake_quantized_layers(network), lambda layer: make_whole(layer, layer.scheme)
    )


def make_float(network: nn.Module, smoothed: bool = False) -> None:
    """Put plain layers with the rounded weights in the place of all that are rounded.

    They read what comes, without rounding it.

    Args:
        network: changed in place; without such layers it stays as it is.
        smoothed: whether layers with factors of their inputs keep them, as `SmoothedLinear`.

    Example:
        >>> network = nn.Sequential(QuantizedLinear(nn.Linear(9, 9), Scheme()))
        >>> make_float(network)
        >>> network
        Sequential(
          (0): Linear(in_features=9, out_features=9, bias=True)
        )
    """

    def plain(layer: Any) -> nn.Module:
        factors = getattr(layer, "smooth", None)
        return make_dense_layer(layer) if factors is None or not smoothed else SmoothedLinear(layer)

    replace_all(network, fake_quantized_layers(network) | quantized_layers(network), plain)


def make_whole(layer: Any, scheme: Scheme) -> nn.Module:
    """Make the layer of whole numbers of a plain one, or one that learns to be rounded.

    Args:
        layer: linear, or a table.
        scheme: of which only bits and groups are a table's.
    """
    if isinstance(layer, nn.Embedding):
        return QuantizedEmbedding(layer, Scheme(*scheme.grid))
    return QuantizedLinear(layer, scheme)


def layer_inputs(layer: Any) -> int:
    """Return how many inputs an output has, of a table how wide a row is."""
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim
    return int(layer.nx) if isinstance(layer, Conv1D) else int(layer.in_features)


def replace_all(
    network: nn.Module, layers: Mapping[str, Any], make: Callable[[Any], nn.Module]
) -> None:
    """Replace layers; those that shared a weight share it afterwards.

    Args:
        network: changed in place.
        layers: by dotted name.
        make: gives the new layer for an old one.
    """
    made: dict[int, Any] = {}
    for name, layer in layers.items():
        new: Any = make(layer)
        if id(layer.weight) in made:
            first = made[id(layer.weight)]
            for word in ("weight", "scale"):
                if hasattr(new, word):
                    setattr(new, word, getattr(first, word))
        made.setdefault(id(layer.weight), new)
        replace_module(network, name, new)
