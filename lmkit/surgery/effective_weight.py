"""The weight that a layer of the base would need to compute what it computes with its adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from .injection import bare_layer
from .norm_shift import Shifted

__all__ = ["changed_weights", "wrappers"]


def wrappers(layer: Any) -> Iterator[Any]:
    """Yield what wraps a layer, from the outside."""
    while hasattr(layer, "base_layer"):
        yield layer
        layer = layer.base_layer


@torch.no_grad()
def changed_weights(name: str, layer: Any) -> dict[str, Tensor]:
    """Compute the weights that the layer inside needs to do without what wraps it.

    Args:
        name: of the layer, for the error.
        layer: wraps a linear layer or a normalization; bottleneck adapters in it do not count.

    Returns:
        By their names in the layer inside, and of their shapes; none when nothing changes.

    Raises:
        ValueError: the weight is quantized.
    """
    if isinstance(layer, Shifted):
        return layer.tensors() if layer.weights else {}
    if not any(_computes(module) for module in wrappers(layer)):
        return {}
    bare: Any = bare_layer(layer)
    if not bare.weight.is_floating_point():
        raise ValueError(
            f"{name} has a weight of {bare.weight.dtype}, into which nothing can be merged; load "
            "the base in floating-point numbers"
        )
    turned = isinstance(bare, Conv1D)
    plain = bare.weight.detach().float()
    weight, bias = _effective(layer, plain.T if turned else plain)
    made = {"weight": weight.T if turned else weight}
    return made if bias is None else {**made, "bias": bias}


def _effective(layer: Any, plain: Tensor) -> tuple[Tensor, Tensor | None]:
    """Compute weight `[out, in]` and bias `[out]` of a layer with all that wraps it, in float32.

    Args:
        layer: a linear layer, or what wraps one.
        plain: the weight of the layer inside, `[out, in]`.
    """
    if not hasattr(layer, "base_layer"):
        return plain, None if layer.bias is None else layer.bias.detach().float()
    weight, bias = _effective(layer.base_layer, plain)
    if hasattr(layer, "ia3_l"):
        for name in layer.adapter_weights:
            gain = layer.ia3_l[name].detach().float()  # [1, in] or [out, 1]
            weight = weight * gain
            if bias is not None and not layer.is_feedforward:
                bias = bias * gain.flatten()
    elif hasattr(layer, "lora_A"):
        for name in layer.lora_A:
            weight = weight + _added(layer, name, plain)
    return weight, bias


def _added(layer: Any, name: str, plain: Tensor) -> Tensor | float:
    """Compute what an adapter of LoRA's kin adds to a weight, `[out, in]`."""
    share, scale = layer.adapter_weights.get(name, 0.0), layer.own_scaling[name]
    begun: Tensor | float = 0.0
    if name in (starts := getattr(layer, "starts", {})):
        # The base lacks what this adapter began with, and has it back where that is off.
        start = starts[name]
        begun = scale * (1 - share) * (start.up.float() @ start.down.float())
    if not share:
        return begun
    product = _product(layer, name)
    if name in getattr(layer, "lora_magnitude_vector", {}):
        moved = plain + scale * product
        lengths = layer.lora_magnitude_vector[name].weight.float().unsqueeze(1)
        return cast(Tensor, share * (lengths * moved / moved.norm(dim=1, keepdim=True) - plain))
    if hasattr(layer, "ranknum"):
        scale = scale / (float(layer.ranknum[name]) + 1e-5)  # as peft has it
    return cast(Tensor, scale * share * product + begun)


def _product(layer: Any, name: str) -> Tensor:
    if hasattr(layer, "lora_E"):
        return cast(Tensor, layer.lora_B[name] @ (layer.lora_A[name] * layer.lora_E[name])).float()
    return cast(Tensor, layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float())


def _computes(layer: Any) -> bool:
    """Whether a layer of peft does anything; what is taken from the base does when it is off."""
    return bool(getattr(layer, "adapter_weights", {}) or getattr(layer, "starts", {}))
