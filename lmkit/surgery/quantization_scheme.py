"""To which numbers a layer rounds, and the rounding of what it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..functional.quantization import fake_quantize_input, input_parameters, weight_range
from .arguments import check_whole

__all__ = [
    "ACTIVATIONS",
    "Scheme",
    "add_buffers",
    "check_groups",
    "round_input",
    "take_sizes",
]

#: How what a layer reads is rounded; beside these `None`, for not at all.
ACTIVATIONS = ("per_token", "per_tensor", "static")


@dataclass(frozen=True)
class Scheme:
    """To which numbers a layer rounds its weight and what it reads.

    Attributes:
        bits: of a weight, 8 or 4.
        group_size: how many inputs of an output share a step; 0 for all of them.
        activations: to 8 bits with a range of each token (`per_token`), of the whole tensor
            (`per_tensor`), or of what was seen in a calibration (`static`); `None` leaves them.
        smooth: whether each input is divided by a factor of its own, which its weights hold.

    Raises:
        ValueError: an attribute lies outside its range.

    Example:
        >>> str(Scheme(bits=4, group_size=32))
        '4 bits in groups of 32'
    """

    bits: int = 8
    group_size: int = 0
    activations: str | None = None
    smooth: bool = False

    def __post_init__(self) -> None:
        """Check the attributes."""
        if self.bits not in (4, 8) or type(self.bits) is bool:
            raise ValueError(f"bits must be 8 or 4, got {self.bits!r}")
        check_whole("group_size", self.group_size, 0)
        if self.activations not in (*ACTIVATIONS, None):
            raise ValueError(
                f"activations must be one of {', '.join(ACTIVATIONS)}, or None, got "
                f"{self.activations!r}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Bits and group size, as the functions for weights take them."""
        return self.bits, self.group_size

    @property
    def packed(self) -> bool:
        """Whether two weights share a byte."""
        return weight_range(self.bits)[1] < 8

    def __str__(self) -> str:
        """Say it in words."""
        groups = f" in groups of {self.group_size}" if self.group_size else ""
        read = f", inputs {self.activations}" if self.activations else ""
        return f"{self.bits} bits{groups}{read}{', smoothed' if self.smooth else ''}"


def add_buffers(layer: nn.Module, scheme: Scheme, width: int, like: Tensor) -> None:
    """Give a layer what its scheme keeps beside the weight; at first without any effect.

    Args:
        layer: changed in place; it has `smooth` `[i]`, `input_scale` and `input_zero_point`
            then, or `None` for what is not needed.
        scheme: says which.
        width: $i$.
        like: of the device.
    """
    how: dict[str, Any] = {"device": like.device, "dtype": torch.float32}
    static = scheme.activations == "static"
    layer.register_buffer("smooth", torch.ones(width, **how) if scheme.smooth else None)
    layer.register_buffer("input_scale", torch.ones((), **how) if static else None)
    layer.register_buffer("input_zero_point", torch.zeros((), **how) if static else None)


def round_input(layer: Any, x: Tensor) -> Tensor:
    """Smooth and round what a layer reads, with a gradient.

    Args:
        layer: has a `scheme`, and what `add_buffers` gave it.
        x: `[..., i]`.
    """
    scheme: Scheme = layer.scheme
    if layer.smooth is not None:
        x = x / layer.smooth.to(x.dtype)
    if scheme.activations is None:
        return x
    if scheme.activations == "static":
        return fake_quantize_input(x, layer.input_scale, layer.input_zero_point)
    return fake_quantize_input(x, *input_parameters(x, cast(Any, scheme.activations)))


def check_groups(scheme: Scheme, width: int) -> None:
    """Check that groups fit the inputs of a layer.

    Raises:
        ValueError: they do not.

    Example:
        >>> check_groups(Scheme(group_size=32), 48)
        Traceback (most recent call last):
        ...
        ValueError: group_size is 32, which does not divide 48
    """
    if scheme.group_size and width % scheme.group_size:
        raise ValueError(f"group_size is {scheme.group_size}, which does not divide {width}")


def take_sizes(made: Any, table: nn.Embedding) -> None:
    """Give a table the sizes of another one, of whose rows none is renormed."""
    made.num_embeddings, made.embedding_dim = table.num_embeddings, table.embedding_dim
    made.padding_idx, made.max_norm, made.norm_type = table.padding_idx, None, 2.0
    made.scale_grad_by_freq = made.sparse = False
