"""The weights of one adapter, by names that say nothing of what else wraps the layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .lora import LoRA
from .sites import base_name

__all__ = ["adapter_tensors", "as_plain_lora", "other_tensors", "place_of", "put_tensors"]

_KEY = re.compile(
    r"((?:.*\.)?(?:lora_[ABE]|lora_magnitude_vector|starts|ia3_l|adapters|fusions|ranknum))"
    r"\.([^.]+)(\..+)?"
)


def adapter_tensors(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the weights of an adapter.

    Args:
        state: the state dict of a network.
        name: of the adapter.

    Returns:
        By their names, without those of the adapter and of what wraps a layer.

    Example:
        >>> state = {"fc.base_layer.weight": torch.ones(1), "fc.lora_A.a.weight": torch.ones(1)}
        >>> list(adapter_tensors(state, "a"))
        ['fc.lora_A.weight']
    """
    found = ((_KEY.fullmatch(base_name(key)), tensor) for key, tensor in state.items())
    return {
        f"{match[1]}{match[3] or ''}": tensor
        for match, tensor in found
        # How many ranks a layer of AdaLoRA began with is no weight.
        if match and match[2] == name and not match[1].endswith("ranknum")
    }


def other_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what is of no adapter in a state dict, by its names in the plain architecture."""
    names = {key: base_name(key) for key in state}
    return {names[key]: tensor for key, tensor in state.items() if not _KEY.fullmatch(names[key])}


def place_of(key: str) -> str:
    """Return the layer that a weight of an adapter belongs to.

    Example:
        >>> place_of("layer.0.fc.lora_A.weight")
        'layer.0.fc'
    """
    match = re.match(r"(.*)\.(?:lora_[ABE]|lora_magnitude_vector|starts|ia3_l|adapters)\b", key)
    return match[1] if match else ""


@torch.no_grad()
def put_tensors(network: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Give an adapter that is in a network the weights of another.

    Args:
        network: has the adapter.
        name: of the adapter.
        tensors: as `adapter_tensors` returns them.

    Raises:
        ValueError: there are others than the adapter has, or of other shapes.
    """
    own = adapter_tensors(network.state_dict(), name)
    faults = [f"{key} is missing" for key in own if key not in tensors]
    faults += [f"{key} is unknown" for key in tensors if key not in own]
    faults += [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in tensors and own[key].shape != tensors[key].shape
    ]
    if faults:
        raise ValueError(
            f"these are not the weights of the adapter {name!r}: {'; '.join(faults[:5])}"
            + (f" and {len(faults) - 5} more" if len(faults) > 5 else "")
        )
    for key, tensor in own.items():
        tensor.copy_(tensors[key])


def as_plain_lora(surgery: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    r"""Write what began as a part of the base as a sum on the whole base.

    $s B A - s B_0 A_0$ of PiSSA and OLoRA is a LoRA of rank $2 r$ with the factors
    $[B, -B_0]$ and $[A; A_0]$, which needs no other base. Any other adapter stays as it is.

    Args:
        surgery: that made the adapter.
        tensors: as `adapter_tensors` returns them.
    """
    if not any(".starts." in key for key in tensors):
        return surgery, dict(tensors)
    made = {}
    for key, tensor in tensors.items():
        place = place_of(key)
        if key == f"{place}.lora_A.weight":
            made[key] = torch.cat([tensor, tensors[f"{place}.starts.down"]])
        elif key == f"{place}.lora_B.weight":
            made[key] = torch.cat([tensor, -tensors[f"{place}.starts.up"]], dim=1)
    origin: LoRA = surgery
    twice = {"rank": 2 * origin.rank, "alpha": 2 * origin.alpha, "variant": "lora"}
    return replace(origin, **twice), made  # type: ignore[arg-type]
