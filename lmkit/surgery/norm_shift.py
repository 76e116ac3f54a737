"""Normalizations whose scale and bias each adapter moves in a way of its own."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .base import NothingMatchedError, replace_module
from .wrapped_layer import WrappedLayer

__all__ = ["Shift", "Shifted", "find_norms", "shift"]


class Shift(nn.Module):
    """What an adapter adds to the weights of a normalization; at first zero.

    Args:
        norm: the normalization, with a scale and perhaps a bias.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name, parameter in norm.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(torch.zeros_like(parameter)))


class Shifted(WrappedLayer):
    r"""A normalization with the weights $\gamma + \sum_a w_a \Delta\gamma_a$, $\beta$ likewise.

    To train $\Delta\gamma$ from zero is to train $\gamma$, but the base's own weights stay as they
    are, so that several adapters share one base. A fusion moves them by the mean of its parts.

    Args:
        base_layer: the normalization.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.fusions: dict[str, tuple[str, ...]] = {}
        #: Whether the base's weights are the shifted ones, see `lmkit.surgery.folding`.
        self.folded = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Normalize `x` with the shifted weights."""
        if self.folded or not self.weights:
            return cast(Tensor, self.base_layer(x, *args, **kwargs))
        return cast(Tensor, functional_call(self.base_layer, self.tensors(), (x, *args), kwargs))

    def tensors(self) -> dict[str, Tensor]:
        """Compute the shifted weights by name."""
        tensors: dict[str, Tensor] = dict(self.base_layer.named_parameters(recurse=False))
        for name, weight in self.weights.items():
            parts = self.fusions.get(name, (name,))
            share = weight / len(parts)
            for part in parts:
                for word, delta in self.adapters[part].named_parameters():
                    tensors[word] = tensors[word] + (delta if share == 1 else share * delta)
        return tensors


def shift(network: nn.Module, name: str) -> Shifted:
    """Return the shifted normalization at a dotted name; wrap what is there if it is none yet."""
    layer = network.get_submodule(name)
    if isinstance(layer, Shifted):
        return layer
    shifted = Shifted(layer)
    replace_module(network, name, shifted)
    return shifted


def find_norms(network: nn.Module) -> dict[str, nn.Module]:
    """Find the normalizations of a network's body that have weights, those that are shifted too.

    Args:
        network: the head of a task, outside `base_model`, does not count.

    Returns:
        Normalizations (or what shifts them) by dotted name; never empty.

    Raises:
        NothingMatchedError: there is none.

    Example:
        >>> list(find_norms(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))))
        ['1']
    """
    body = set(getattr(network, "base_model", network).modules())
    found = {
        name: module
        for name, module in network.named_modules()
        if module in body and not name.endswith(".base_layer") and _is_norm(module)
    }
    if not found:
        raise NothingMatchedError(
            f"{type(network).__name__} has no normalization with weights: give norms=False"
        )
    return found


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, Shifted):
        return True
    own = dict(module.named_parameters(recurse=False))
    return "norm" in type(module).__name__.lower() and "weight" in own
