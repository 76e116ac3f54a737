"""Several adapters on one base: which are active, and with which weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

from torch import nn

__all__ = ["active_adapters", "adapters_of", "flags_kept", "injected_layers", "use_adapters"]


def adapters_of(network: nn.Module) -> list[str]:
    """Return the names of all adapters in a network, active or not, in the order of the network.

    One name may stand for several parts (LoRA, bottleneck adapters, a prompt), which are switched
    together.

    Example:
        >>> adapters_of(nn.Linear(2, 2))
        []
    """
    return list(dict.fromkeys(name for part in _parts(network) for name in _names(part)))


def active_adapters(network: nn.Module) -> dict[str, float]:
    """Return the weights of the active adapters by name; those that are missing are off."""
    active: dict[str, float] = {}
    for part in _parts(network):
        active |= _weights(part)
    return {name: weight for name, weight in active.items() if weight}


def use_adapters(network: nn.Module, weights: Mapping[str, float]) -> None:
    r"""Make adapters active with weights, and all others inactive; an empty mapping gives the base.

    A weight multiplies what an adapter adds: $W + \sum_a w_a \Delta W_a$ for LoRA and its kin, of
    bottleneck adapters what they give. What an (IA)³ adapter does is to multiply, and prompts are
    there or not: their weights are 0 or 1. Of several (IA)³ adapters the factors are multiplied.

    What is trainable stays as it is: a weight that learns but is not active gets no gradient.

    Args:
        network: changed in place.
        weights: by name; a name left out is off, as is one with weight 0.

    Raises:
        TypeError: `weights` is no mapping of numbers.
        ValueError: there is no adapter of a name, a weight is not possible, or the network is
            folded; nothing is changed then.
    """
    _check_numbers(weights)
    parts = list(_parts(network))
    known = adapters_of(network)
    if unknown := [name for name in weights if name not in known]:
        raise ValueError(
            f"the network has no adapters {unknown}; it has {', '.join(known) or 'none'}"
        )
    for part in parts:
        _check(part, weights)
    with flags_kept(network):
        for part in parts:
            own = {n: float(w) for n, w in weights.items() if w and n in _names(part)}
            if _is_injected(part):
                _switch(part, own)
            else:
                part.use(own)


def injected_layers(network: nn.Module) -> dict[str, Any]:
    """Return the layers of peft in a network by dotted name, outer ones before those inside."""
    return {name: module for name, module in network.named_modules() if _is_injected(module)}


@contextmanager
def flags_kept(network: nn.Module) -> Iterator[None]:
    """Give all weights that are there now their `requires_grad` back at the end."""
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def _is_injected(module: Any) -> bool:
    # Told by what it holds: where peft is not installed, there is none.
    return hasattr(module, "base_layer") and hasattr(module, "merged_adapters")


def _parts(network: nn.Module) -> Iterator[Any]:
    """Yield the layers of peft, and all else whose adapters have names."""
    for module in network.modules():
        if _is_injected(module) or hasattr(module, "adapter_names"):
            yield module


def _names(part: Any) -> Iterable[str]:
    if not _is_injected(part):
        return tuple(part.adapter_names)
    return tuple(part.ia3_l if hasattr(part, "ia3_l") else part.lora_A)


def _weights(part: Any) -> dict[str, float]:
    if not _is_injected(part):
        return dict(part.active_adapters)
    by_peft = {name: 1.0 for name in part.active_adapters if name in _names(part)}
    return dict(getattr(part, "adapter_weights", by_peft))


def _check_numbers(weights: Any) -> None:
    if not isinstance(weights, Mapping):
        raise TypeError(
            "weights must be numbers by the names of adapters, such as {'topics': 1.0}, got "
            f"{weights!r}"
        )
    if wrong := {name: w for name, w in weights.items() if not isinstance(w, Real)}:
        raise TypeError(f"the weights of adapters must be numbers, such as 0.7, got {wrong}")
    if wrong := {name: w for name, w in weights.items() if not math.isfinite(w)}:
        raise ValueError(f"the weights of adapters must be finite, got {wrong}")


def _check(part: Any, weights: Mapping[str, float]) -> None:
    own = {name: weight for name, weight in weights.items() if name in _names(part)}
    if getattr(part, "merged_adapters", None) or getattr(part, "folded", False):
        raise ValueError("the network is folded: unfold it before other adapters are used")
    whole = hasattr(part, "ia3_l")
    if wrong := {n: w for n, w in own.items() if whole and w not in (0, 1)}:
        raise ValueError(
            f"the weights of (IA)³ adapters must be 0 or 1, got {wrong}: they multiply what a "
            "layer computes and add nothing that could be weighed; train LoRA for a weighted sum"
        )


def _switch(layer: Any, weights: Mapping[str, float]) -> None:
    """Switch the adapters of one layer of peft; none of them loses its own scale."""
    active = list(weights)
    for name in _names(layer):
        variant: Any = getattr(layer, "lora_variant", {}).get(name)
        if hasattr(variant, "weight"):
            variant.weight = weights.get(name, 0.0)
            if variant.always and name not in weights:
                active.append(name)
        elif hasattr(layer, "own_scaling"):
            layer.scaling[name] = layer.own_scaling[name] * weights.get(name, 1.0)
    layer.set_adapter(active)
    layer.adapter_weights = dict(weights)
