"""Parameters cut down to some of their rows and columns, all at once, and where each came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .low_rank_layers import LowRankEmbedding, LowRankLinear

__all__ = ["Cutting", "Slice", "Slices", "parameter_names"]


class Slice(NamedTuple):
    """Which part of an old parameter a new one is.

    Attributes:
        name: of the old parameter, before.
        cuts: dimensions, and the indices that were kept along each, int64.
    """

    name: str
    cuts: tuple[tuple[int, Tensor], ...] = ()

    def of(self, old: Tensor) -> Tensor:
        """Cut a tensor of the old parameter's shape, such as what an optimizer knows of it.

        Example:
            >>> Slice("weight", ((0, torch.tensor([1])),)).of(torch.eye(2))
            tensor([[0., 1.]])
        """
        for dim, index in self.cuts:
            old = old.index_select(dim, index.to(old.device))
        return old


class Slices(dict[str, Slice]):
    """By the name of each parameter of a network what part it is of which old one.

    Attributes:
        gone: old names of parameters of which nothing is left.
    """

    gone: tuple[str, ...]

    def __init__(self, slices: Mapping[str, Slice], gone: Iterable[str] = ()) -> None:
        super().__init__(slices)
        self.gone = tuple(gone)


def parameter_names(network: nn.Module) -> dict[int, str]:
    """Return the first name of each parameter by its identity."""
    return {id(parameter): name for name, parameter in network.named_parameters()}


class Cutting:
    """What is to be cut, gathered first and then done: nothing is changed when something is wrong.

    Args:
        network: to be changed by `perform`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._cuts: dict[int, dict[int, Tensor]] = {}
        self._sizes: list[tuple[nn.Module, str, Any]] = []

    def outputs(self, name: str, index: Tensor) -> None:
        """Keep some outputs of a linear layer: rows of its weight, and of its bias."""
        layer = plain_layer(self.network, name)
        turned = isinstance(layer, Conv1D)
        self.parameter(layer.weight, 1 if turned else 0, index)
        if layer.bias is not None:
            self.parameter(layer.bias, 0, index)
        self.size(layer, "nf" if turned else "out_features", len(index))

    def inputs(self, name: str, index: Tensor) -> None:
        """Keep some inputs of a linear layer: columns of its weight."""
        layer = plain_layer(self.network, name)
        turned = isinstance(layer, Conv1D)
        self.parameter(layer.weight, 0 if turned else 1, index)
        self.size(layer, "nx" if turned else "in_features", len(index))

    def parameter(self, parameter: Tensor, dim: int, index: Tensor) -> None:
        """Keep some indices of a parameter along a dimension; of all that share it."""
        known = self._cuts.setdefault(id(parameter), {})
        if dim in known and not torch.equal(known[dim], index):
            raise ValueError(
                f"{parameter_names(self.network)[id(parameter)]} would be cut in two ways along "
                f"dimension {dim}: layers share it that do not keep the same"
            )
        known[dim] = index

    def size(self, module: nn.Module, attribute: str, value: Any) -> None:
        """Set an attribute of a module that has it."""
        if hasattr(module, attribute):
            self._sizes.append((module, attribute, value))

    @torch.no_grad()
    def perform(self) -> dict[int, Slice]:
        """Cut; parameters that are shared stay so.

        Returns:
            Where each parameter of the network is from, by its identity.
        """
        names = parameter_names(self.network)
        made: dict[int, nn.Parameter] = {}
        origins: dict[int, Slice] = {}
        for old in self.network.parameters():
            cuts = tuple(sorted(self._cuts.get(id(old), {}).items()))
            origin = Slice(names[id(old)], cuts)
            new = old
            if cuts:
                new = nn.Parameter(origin.of(old.data).contiguous(), old.requires_grad)
                new.grad = None if old.grad is None else origin.of(old.grad).contiguous()
            made[id(old)] = new
            origins[id(new)] = origin
        for module in self.network.modules():
            for word, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[word] = made[id(parameter)]
        for module, attribute, value in self._sizes:
            setattr(module, attribute, value)
        return origins


def plain_layer(network: nn.Module, name: str) -> Any:
    """Return a linear layer that can be cut.

    Raises:
        ValueError: it is wrapped, factorized, quantized or none; says what to do.
    """
    layer: Any = network.get_submodule(name)
    if hasattr(layer, "base_layer"):
        raise ValueError(
            f"{name} is wrapped by a {type(layer).__name__}, whose own weights would not fit what "
            "is left: merge the adapters first, or remove units before they are put in"
        )
    if isinstance(layer, LowRankLinear | LowRankEmbedding):
        raise ValueError(
            f"{name} is a product of rank {layer.rank}, and no rows can be removed from it: remove "
            "units before layers are factorized, or make it dense first"
        )
    if type(layer) not in (nn.Linear, Conv1D) or not layer.weight.is_floating_point():
        kind = getattr(getattr(layer, "weight", None), "dtype", "no weight")
        raise ValueError(
            f"{name} is a {type(layer).__name__} ({kind}), and only plain linear layers are cut: "
            "remove units before the network is quantized or otherwise changed"
        )
    return layer
