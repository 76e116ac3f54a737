"""What the formulas of LoRA's papers give, written out for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lmkit.surgery.composition import injected_layers
from lmkit.surgery.injection import bare_layer
from lmkit.surgery.sites import base_name

Array = np.ndarray[Any, Any]


def own_weight(layer: nn.Module) -> Array:
    """Return the weight of the layer inside, `[out, in]`."""
    inside: Any = bare_layer(layer)
    weight: Array = inside.weight.detach().double().numpy()
    return weight.T if isinstance(inside, Conv1D) else weight


def added(layer: Any, name: str, variant: str, alpha: float, rank: int) -> Array:
    """Return what an adapter adds to the weight that is now inside its layer, `[out, in]`."""
    weight = own_weight(layer)
    if variant == "adalora":
        left, values, right = (
            getattr(layer, f"lora_{letter}")[name].detach().double().numpy() for letter in "BEA"
        )
        # Peft adds 1e-5 to the rank that it divides by.
        made: Array = alpha / (rank + 1e-5) * left @ np.diag(values[:, 0]) @ right
        return made
    up, down = (
        getattr(layer, f"lora_{letter}")[name].weight.detach().double().numpy() for letter in "BA"
    )
    scale = alpha / (rank**0.5 if variant == "rslora" else rank)
    if variant == "dora":
        lengths = layer.lora_magnitude_vector[name].weight.detach().double().numpy()
        moved = weight + scale * up @ down
        norms = np.sqrt((moved**2).sum(1))
        turned: Array = (lengths / norms)[:, None] * moved
        return turned - weight
    product: Array = scale * up @ down
    return product


def fold_by_hand(network: nn.Module, plain: nn.Module, changes: dict[str, Array]) -> None:
    """Give `plain` the weights of `network`, with something added to some of them.

    Args:
        network: with adapters.
        plain: the same without.
        changes: to add to the weights of layers, by the name that a layer has in `plain`.
    """
    state = {base_name(name): tensor for name, tensor in network.state_dict().items()}
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    with torch.no_grad():
        for name, change in changes.items():
            layer: Any = plain.get_submodule(name)
            turned = change.T if isinstance(layer, Conv1D) else change
            layer.weight.add_(torch.from_numpy(np.ascontiguousarray(turned)))


def folded_layers(network: nn.Module) -> dict[str, list[Any]]:
    """Return the layers of peft by the name of the layer that they stand for, outer ones first."""
    found: dict[str, list[Any]] = {}
    for name, layer in injected_layers(network).items():
        found.setdefault(base_name(name), []).append(layer)
    return found
